// Reads protobuf's wire format from the slices of a received message.
#pragma once

#include <grpcpp/support/slice.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "proto/codec/tensor_bytes.h"

namespace attention::codec {

// A position in the slices, which must outlive it. Methods that return false have met the end, or a
// varint that is none, and leave the position anywhere.
class SliceReader {
 public:
  explicit SliceReader(std::span<const grpc::Slice> slices);

  std::size_t remaining() const { return remaining_; }

  // A varint of at most `max_bytes`, which are five for tags and lengths and ten for numbers. Bits
  // beyond the 64th are dropped, as protobuf does.
  bool ReadVarint(int max_bytes, std::uint64_t* value);
  // The bytes of a varint of at most ten, as they are.
  bool AppendVarintTo(std::string* out);
  bool AppendTo(std::size_t size, std::string* out);
  bool View(std::size_t size, TensorBytes* bytes);

 private:
  // Calls visit(piece) over the next bytes, which must be there.
  template <typename Visit>
  void Take(std::size_t size, Visit visit);
  // Goes on to the next slice that is not empty; there must be one.
  void EnterNext();
  bool ReadByte(std::uint8_t* byte) {
    if (remaining_ == 0) return false;
    if (at_ == end_) EnterNext();
    *byte = *at_++;
    --remaining_;
    return true;
  }

  std::span<const grpc::Slice> slices_;  // those after the present one
  const std::uint8_t* at_ = nullptr;     // in the present one
  const std::uint8_t* end_ = nullptr;
  std::size_t remaining_ = 0;
};

}  // namespace attention::codec
