#include "server/rpc/request_tensors.h"

#include <algorithm>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/aligned_buffer.h"
#include "kernels/base/divide.h"
#include "server/base/status_macros.h"

namespace attention::server {
namespace {

// Small tensors share a buffer: the queries of 64 sessions' steps need not be 64 buffers.
constexpr std::size_t kSharedBufferBytes = 64 * 1024;

// The same error, naming the field.
absl::Status AtField(absl::string_view field, const absl::Status& status) {
  absl::Status named(status.code(), absl::StrCat(field, ".", status.message()));
  status.ForEachPayload(
      [&](absl::string_view url, const absl::Cord& payload) { named.SetPayload(url, payload); });
  return named;
}

}  // namespace

absl::StatusOr<char*> RequestTensors::Resolve(absl::string_view field,
                                              const v1::SharedMemoryRef& place,
                                              std::int64_t bytes) {
  if (regions_ == nullptr) {
    return absl::FailedPreconditionError(
        absl::StrCat(field, " is in shared memory, which this server does not offer"));
  }
  auto region = regions_->Find(place.region_id(), tenant_);
  if (!region.ok()) return AtField(field, region.status());
  if (!(*region)->Contains(place.offset(), bytes)) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, " is ", bytes, " bytes at offset ", place.offset(),
                     ", expected them within the region's ", (*region)->size(), " bytes"));
  }
  char* data = (*region)->data() + place.offset();
  if (used_regions_.empty() || used_regions_.back() != *region) {
    used_regions_.push_back(*std::move(region));
  }
  return data;
}

absl::Status RequestTensors::ResolveTensor(absl::string_view field, const v1::Tensor& tensor,
                                           std::int64_t bytes) {
  const std::string name = absl::StrCat(field, ".shared_memory");
  if (Size(tensor) > 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, ".data has ", Size(tensor), " bytes, expected none with ", name));
  }
  ATTENTION_ASSIGN_OR_RETURN(shared_[&tensor], Resolve(name, tensor.shared_memory(), bytes));
  return absl::OkStatus();
}

const char* RequestTensors::Place(const v1::Tensor& tensor) {
  if (tensor.has_shared_memory()) return shared_.at(&tensor);
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
