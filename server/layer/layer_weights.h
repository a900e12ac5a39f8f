// A layer's weights as the device reads them. Immutable, shared by the layers that have the same.
#pragma once

#include <array>
#include <cstddef>
#include <memory>

#include "absl/status/statusor.h"
#include "kernels/api/projection.h"
#include "server/layer/layer_tensors.h"

namespace attention::server {

class LayerWeights {
 public:
  // RESOURCE_EXHAUSTED when memory is out. Thread-safe.
  static absl::StatusOr<std::shared_ptr<const LayerWeights>> Pack(ProjectionBackend& projections,
                                                                  const LayerTensors& tensors);
  // The most bytes that Pack will take.
  static std::size_t PackedBytes(const ProjectionBackend& projections, const LayerSpec& spec);

  // x to q, k and v beside each other; to q alone with cross-attention.
  const PackedProjection& input() const { return *input_; }
  // With cross-attention: the context to k and v beside each other. Else null.
  const PackedProjection* context() const { return context_.get(); }
  const PackedProjection& output() const { return *output_; }
  std::size_t bytes() const;
  // True when a part is lost (PackedProjection::is_lost).
  bool is_lost() const;

  // The tensors that were packed, bit by bit (a NaN may have become another). The device's errors.
  absl::StatusOr<LayerTensors> Unpack(const LayerSpec& spec) const;

 private:
  std::shared_ptr<const PackedProjection> input_;
  std::shared_ptr<const PackedProjection> context_;
  std::shared_ptr<const PackedProjection> output_;
  std::array<bool, kNumLayerTensors> has_ = {};
};

}  // namespace attention::server
