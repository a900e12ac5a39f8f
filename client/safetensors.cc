#include "attention/client/safetensors.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "client/internal/convert/safetensors_reader.h"

namespace attention::client {

struct Safetensors::Impl {
  internal::SafetensorsReader reader;
};

absl::StatusOr<Safetensors> Safetensors::Open(const std::string& path) {
  auto reader = internal::SafetensorsReader::Open(path);
  if (!reader.ok()) return std::move(reader).status();
  return Safetensors(std::make_shared<const Impl>(Impl{*std::move(reader)}));
}

std::vector<std::string> Safetensors::names() const { return impl_->reader.names(); }

absl::StatusOr<TensorView> Safetensors::Find(const std::string& name) const {
  return impl_->reader.Find(name);
}

absl::StatusOr<LayerWeights> Safetensors::FindLayer(const LayerTensorNames& names) const {
  LayerWeights weights;
  const std::pair<const std::string*, TensorView*> tensors[] = {
      {&names.w_q, &weights.w_q}, {&names.w_k, &weights.w_k}, {&names.w_v, &weights.w_v},
      {&names.w_o, &weights.w_o}, {&names.b_q, &weights.b_q}, {&names.b_k, &weights.b_k},
      {&names.b_v, &weights.b_v}, {&names.b_o, &weights.b_o}};
  for (const auto& [name, tensor] : tensors) {
    if (name->empty()) continue;
    absl::StatusOr<TensorView> found = Find(*name);
    if (!found.ok()) return std::move(found).status();
    *tensor = *std::move(found);
  }
  return weights;
}

}  // namespace attention::client
