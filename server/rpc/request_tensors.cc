#include "server/rpc/request_tensors.h"

#include <algorithm>

#include "kernels/base/aligned_buffer.h"
#include "kernels/base/divide.h"

namespace attention::server {
namespace {

// Small tensors share a buffer: the queries of 64 sessions' steps need not be 64 buffers.
constexpr std::size_t kSharedBufferBytes = 64 * 1024;

}  // namespace

const char* RequestTensors::Place(const v1::Tensor& tensor) {
  const codec::TensorBytes bytes = message_->Data(tensor);
  const std::size_t room = RoundUp(bytes.size(), kCacheLineBytes);
  if (buffers_.empty() || used_ + room > buffers_.back().capacity()) {
    const bool is_first = buffers_.empty();  // of a small request, most likely its only one
    buffers_.push_back(pool_->Get(is_first ? room : std::max(room, kSharedBufferBytes)));
    used_ = 0;
  }
  char* place = buffers_.back().data() + used_;
  bytes.CopyTo(place);
  used_ += room;
  copied_bytes_ += static_cast<std::int64_t>(bytes.size());
  return place;
}

}  // namespace attention::server
