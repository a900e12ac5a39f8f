#include "server/layer/convert.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "server/base/status_macros.h"

namespace attention::server {
namespace {

// `head_elements`: of one head's rows; those of a group lie one head after another.
std::string Pool(const std::string& bytes, DType dtype, std::int64_t head_elements, int num_groups,
                 int group_size) {
  std::string pooled(bytes.size() / static_cast<std::size_t>(group_size), '\0');
  for (std::int64_t group = 0; group < num_groups; ++group) {
    for (std::int64_t i = 0; i < head_elements; ++i) {
      double sum = 0;
      for (std::int64_t head = 0; head < group_size; ++head) {
        sum += LoadElement(bytes.data(), dtype, (group * group_size + head) * head_elements + i);
      }
      StoreElement(pooled.data(), dtype, group * head_elements + i,
                   static_cast<float>(sum / group_size));
    }
  }
  return pooled;
}

}  // namespace

absl::StatusOr<LayerSpec> PooledSpec(const LayerSpec& source, int num_kv_heads) {
  const int present = source.attention.num_kv_heads;
  if (num_kv_heads < 1 || present % num_kv_heads != 0) {
    return absl::InvalidArgumentError(absl::StrCat("num_kv_heads is ", num_kv_heads,
                                                   ", expected a divisor of the source's ", present,
                                                   " KV heads"));
  }
  LayerSpec spec = source;
  spec.attention.num_kv_heads = num_kv_heads;
  return spec;
}

absl::StatusOr<LayerTensors> MeanPoolHeads(const LayerTensors& source, int num_kv_heads,
                                           const Interrupt& interrupt) {
  ATTENTION_ASSIGN_OR_RETURN(const LayerSpec spec, PooledSpec(source.spec(), num_kv_heads));
  const int present = source.spec().attention.num_kv_heads;
  LayerTensors converted(spec);
  for (int i = 0; i < kNumLayerTensors; ++i) {
    const auto tensor = static_cast<LayerTensor>(i);
    if (!source.has(tensor)) continue;
    ATTENTION_RETURN_IF_ERROR(Ask(interrupt));
    const bool is_pooled = tensor == LayerTensor::kWk || tensor == LayerTensor::kWv ||
                           tensor == LayerTensor::kBk || tensor == LayerTensor::kBv;
    if (!is_pooled || num_kv_heads == present) {
      converted.Set(tensor, source.bytes(tensor));
      continue;
    }
    converted.Set(tensor, Pool(source.bytes(tensor), spec.dtype,
                               ShapeOf(source.spec(), tensor).elements() / present, num_kv_heads,
                               present / num_kv_heads));
  }
  return converted;
}

}  // namespace attention::server
