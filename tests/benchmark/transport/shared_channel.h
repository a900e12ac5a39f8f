// Memory that the client shares with the server, for requests whose tensors lie there.
#pragma once

#include <google/protobuf/message.h>

#include <cstddef>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "attention/v1/attention_service.pb.h"
#include "attention/v1/session_service.pb.h"
#include "client/internal/shared_memory/shared_memory_socket.h"
#include "client/internal/shared_memory/shared_region.h"

namespace attention::bench {

class SharedChannel {
 public:
  // Exits with a message when the server at the socket does not take the memory. `copies`: whether
  // each request's tensors are copied there first, as the SDK does with tensors that lie elsewhere.
  SharedChannel(const std::string& path, bool copies);

  bool copies() const { return copies_; }
  const std::string& region_id() const { return region_id_; }
  std::shared_ptr<client::internal::SharedSlot> Allocate(std::size_t bytes) const;

 private:
  const bool copies_;
  std::unique_ptr<client::internal::SharedMemorySocket> connection_;
  std::shared_ptr<client::internal::SharedRegion> region_;
  std::string region_id_;
};

// The tensors of one message in a channel's memory.
class SharedTensors {
 public:
  SharedTensors(const SharedChannel& channel, std::size_t bytes_in, std::size_t bytes_out);
  // Ends the program when the server was asked for outputs and has written none.
  ~SharedTensors();
  SharedTensors(const SharedTensors&) = delete;
  SharedTensors& operator=(const SharedTensors&) = delete;

  // Moves a tensor of the message there.
  void Move(v1::Tensor* tensor);
  // A place for an output of so many bytes.
  v1::SharedMemoryRef OutputPlace(std::size_t bytes);
  // Before each time the message is sent.
  void Prepare();

 private:
  v1::SharedMemoryRef RefTo(std::size_t offset) const;

  const SharedChannel& channel_;
  std::shared_ptr<client::internal::SharedSlot> in_, out_;
  std::size_t used_in_ = 0, used_out_ = 0;
  std::string source_;  // what is copied
  bool is_sent_ = false;
};

}  // namespace attention::bench
