// The context of wire decoders beside a message, for tests that call them without a server.
#pragma once

#include <cstddef>

#include "proto/codec/received_message.h"
#include "server/memory/buffer_pool.h"
#include "server/wire/request_tensors.h"
#include "server/wire/response_tensors.h"

namespace attention::testing {

// Messages made in memory: their tensors' bytes are in their own fields.
class Decoding {
 public:
  // `memory` must outlive what is decoded.
  explicit Decoding(MemoryAllocator& memory, std::int64_t max_bytes = 1 << 20)
      : pool_(memory, std::size_t{16} << 20),
        allocator_(pool_, server::kNobody, max_bytes, kAdmit) {}

  server::BufferPool& pool() { return pool_; }
  server::RequestTensors& tensors() { return tensors_; }
  server::ResponseAllocator& allocator() { return allocator_; }
  server::ResponseBudget& budget() { return allocator_.budget(); }

 private:
  static constexpr auto kAdmit = [](std::int64_t) -> absl::StatusOr<server::ResultLedger::Charge> {
    return nullptr;
  };

  server::BufferPool pool_;
  server::ResponseAllocator allocator_;
  codec::ReceivedMessage received_;
  server::RequestTensors tensors_{received_, pool_};
};

}  // namespace attention::testing
