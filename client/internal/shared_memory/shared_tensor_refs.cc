#include "client/internal/shared_memory/shared_tensor_refs.h"

#include <algorithm>
#include <functional>
#include <iterator>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"

namespace attention::client::internal {
namespace {

v1::SharedMemoryRef MakeRef(const std::string& region_id, std::size_t offset) {
  v1::SharedMemoryRef ref;
  ref.set_region_id(region_id);
  ref.set_offset(static_cast<std::int64_t>(offset));
  return ref;
}

}  // namespace

SharedTensorRefs::SharedTensorRefs(std::vector<NamedSlot> inputs, NamedSlot output,
                                   const std::vector<std::size_t>& output_bytes)
    : inputs_(std::move(inputs)), output_(std::move(output)) {
  std::sort(inputs_.begin(), inputs_.end(), [](const NamedSlot& a, const NamedSlot& b) {
    return std::less<>()(a.slot->data(), b.slot->data());
  });
  if (output_.slot == nullptr) return;
  std::size_t offset = output_.slot->offset();
  for (const std::size_t bytes : output_bytes) {
    outputs_.push_back({offset, bytes});
    offset += ExtentAllocator::RoundUp(bytes);
  }
}

std::size_t SharedTensorRefs::SlotBytes(const std::vector<std::size_t>& output_bytes) {
  std::size_t sum = 0;
  for (const std::size_t bytes : output_bytes) sum += ExtentAllocator::RoundUp(bytes);
  return sum;
}

std::optional<v1::SharedMemoryRef> SharedTensorRefs::RefTo(const TensorView& tensor) const {
  const std::size_t bytes = tensor.num_bytes();
  if (bytes < kMinTensorBytes) return std::nullopt;
  const auto* data = static_cast<const char*>(tensor.data);
  const auto after = std::upper_bound(
      inputs_.begin(), inputs_.end(), data, [](const char* begin, const NamedSlot& named) {
        return std::less<>()(begin, static_cast<const char*>(named.slot->data()));
      });
  if (after == inputs_.begin()) return std::nullopt;
  const NamedSlot& named = *std::prev(after);
  const auto within = static_cast<std::size_t>(data - named.slot->data());
  if (within > named.slot->size() || bytes > named.slot->size() - within) return std::nullopt;
  return MakeRef(named.region_id, named.slot->offset() + within);
}

std::optional<v1::SharedMemoryRef> SharedTensorRefs::RefToOutput(std::size_t index) const {
  if (index >= outputs_.size() || outputs_[index].bytes == 0) return std::nullopt;
  return MakeRef(output_.region_id, outputs_[index].offset);
}

absl::StatusOr<Tensor> SharedTensorRefs::Read(const v1::SharedMemoryRef& ref, DType dtype,
                                              Shape shape) const {
  const std::int64_t elements = NumElements(shape);
  const auto offset = static_cast<std::size_t>(ref.offset());
  auto found = std::lower_bound(
      outputs_.begin(), outputs_.end(), offset,
      [](const Output& output, std::size_t wanted) { return output.offset < wanted; });
  // An output without a ref stands before the next that has one.
  while (found != outputs_.end() && found->offset == offset && found->bytes == 0) ++found;
  if (found == outputs_.end() || found->offset != offset || ref.region_id() != output_.region_id ||
      elements < 0 || static_cast<std::size_t>(elements) * ElementBytes(dtype) != found->bytes) {
    return absl::InternalError(absl::StrCat("the server wrote an output to offset ", ref.offset(),
                                            " of region '", ref.region_id(),
                                            "', which is not where it was asked to"));
  }
  const char* data = output_.slot->data() + (offset - output_.slot->offset());
  return Tensor(dtype, std::move(shape), std::string_view(data, found->bytes), output_.slot);
}

}  // namespace attention::client::internal
