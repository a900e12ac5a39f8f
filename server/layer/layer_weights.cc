#include "server/layer/layer_weights.h"

#include <utility>
#include <vector>

#include "server/base/status_macros.h"

namespace attention::server {
namespace {

using Tensors = std::vector<std::pair<LayerTensor, LayerTensor>>;  // weights and bias

Tensors InputTensors(const LayerSpec& spec) {
  if (spec.is_cross()) return {{LayerTensor::kWq, LayerTensor::kBq}};
  return {{LayerTensor::kWq, LayerTensor::kBq},
          {LayerTensor::kWk, LayerTensor::kBk},
          {LayerTensor::kWv, LayerTensor::kBv}};
}

Tensors ContextTensors() {
  return {{LayerTensor::kWk, LayerTensor::kBk}, {LayerTensor::kWv, LayerTensor::kBv}};
}

Tensors OutputTensors() { return {{LayerTensor::kWo, LayerTensor::kBo}}; }

absl::StatusOr<std::shared_ptr<const PackedProjection>> PackOne(ProjectionBackend& projections,
                                                                const LayerTensors& tensors,
                                                                const Tensors& which) {
  std::vector<ProjectionPart> parts;
  for (const auto& [weights, bias] : which) {
    parts.push_back({ShapeOf(tensors.spec(), weights).out_features, tensors.spec().dtype,
                     tensors.bytes(weights).data(),
                     tensors.has(bias) ? tensors.bytes(bias).data() : nullptr});
  }
  return projections.Pack(ShapeOf(tensors.spec(), which[0].first).in_features, parts);
}

std::size_t BytesOf(const ProjectionBackend& projections, const LayerSpec& spec,
                    const Tensors& which) {
  std::int64_t out_features = 0;
  for (const auto& entry : which) out_features += ShapeOf(spec, entry.first).out_features;
  return projections.PackedBytes(ShapeOf(spec, which[0].first).in_features, out_features);
}

std::string ToBytes(const float* values, std::int64_t count, DType dtype) {
  std::string bytes(static_cast<std::size_t>(count) * DTypeBytes(dtype), '\0');
  for (std::int64_t i = 0; i < count; ++i) StoreElement(bytes.data(), dtype, i, values[i]);
  return bytes;
}

absl::Status UnpackOne(const PackedProjection& packed, const Tensors& which,
                       const std::array<bool, kNumLayerTensors>& has, LayerTensors* tensors) {
  std::vector<float> weights(
      static_cast<std::size_t>(packed.out_features() * packed.in_features()));
  std::vector<float> biases(static_cast<std::size_t>(packed.out_features()));
  ATTENTION_RETURN_IF_ERROR(packed.Unpack(weights.data(), biases.data()));
  std::int64_t row = 0;
  for (const auto& [weight, bias] : which) {
    const LayerTensorShape shape = ShapeOf(tensors->spec(), weight);
    const DType dtype = tensors->spec().dtype;
    tensors->Set(weight,
                 ToBytes(weights.data() + row * shape.in_features, shape.elements(), dtype));
    if (has[static_cast<int>(bias)]) {
      tensors->Set(bias, ToBytes(biases.data() + row, shape.out_features, dtype));
    }
    row += shape.out_features;
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::shared_ptr<const LayerWeights>> LayerWeights::Pack(
    ProjectionBackend& projections, const LayerTensors& tensors) {
  auto weights = std::make_shared<LayerWeights>();
  ATTENTION_ASSIGN_OR_RETURN(weights->input_,
                             PackOne(projections, tensors, InputTensors(tensors.spec())));
  if (tensors.spec().is_cross()) {
    ATTENTION_ASSIGN_OR_RETURN(weights->context_, PackOne(projections, tensors, ContextTensors()));
  }
  ATTENTION_ASSIGN_OR_RETURN(weights->output_, PackOne(projections, tensors, OutputTensors()));
  for (int i = 0; i < kNumLayerTensors; ++i) {
    weights->has_[i] = tensors.has(static_cast<LayerTensor>(i));
  }
  return std::shared_ptr<const LayerWeights>(std::move(weights));
}

std::size_t LayerWeights::PackedBytes(const ProjectionBackend& projections, const LayerSpec& spec) {
  std::size_t bytes =
      BytesOf(projections, spec, InputTensors(spec)) + BytesOf(projections, spec, OutputTensors());
  if (spec.is_cross()) bytes += BytesOf(projections, spec, ContextTensors());
  return bytes;
}

std::size_t LayerWeights::bytes() const {
  return input_->bytes() + output_->bytes() + (context_ == nullptr ? 0 : context_->bytes());
}

bool LayerWeights::is_lost() const {
  return input_->is_lost() || output_->is_lost() || (context_ != nullptr && context_->is_lost());
}

absl::StatusOr<LayerTensors> LayerWeights::Unpack(const LayerSpec& spec) const {
  LayerTensors tensors(spec);
  ATTENTION_RETURN_IF_ERROR(UnpackOne(*input_, InputTensors(spec), has_, &tensors));
  if (context_ != nullptr) {
    ATTENTION_RETURN_IF_ERROR(UnpackOne(*context_, ContextTensors(), has_, &tensors));
  }
  ATTENTION_RETURN_IF_ERROR(UnpackOne(*output_, OutputTensors(), has_, &tensors));
  return tensors;
}

}  // namespace attention::server
