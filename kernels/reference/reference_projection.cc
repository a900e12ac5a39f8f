#include "kernels/reference/reference_projection.h"

#include <algorithm>
#include <utility>
#include <vector>

namespace attention::reference {
namespace {

class PlainProjection final : public PackedProjection {
 public:
  PlainProjection(std::int64_t in_features, std::span<const ProjectionPart> parts)
      : in_features_(in_features) {
    for (const ProjectionPart& part : parts) {
      for (std::int64_t i = 0; i < part.out_features * in_features; ++i) {
        weights_.push_back(LoadElement(part.weights, part.dtype, i));
      }
      for (std::int64_t i = 0; i < part.out_features; ++i) {
        bias_.push_back(part.bias == nullptr ? 0.0f : LoadElement(part.bias, part.dtype, i));
      }
    }
  }

  std::int64_t out_features() const override { return static_cast<std::int64_t>(bias_.size()); }
  std::int64_t in_features() const override { return in_features_; }
  std::size_t bytes() const override { return (weights_.size() + bias_.size()) * sizeof(float); }
  absl::Status Unpack(float* weights, float* bias) const override {
    std::copy(weights_.begin(), weights_.end(), weights);
    std::copy(bias_.begin(), bias_.end(), bias);
    return absl::OkStatus();
  }

  double Element(const ProjectionTask& task, std::int64_t row, std::int64_t out) const {
    double sum = bias_[out];
    for (std::int64_t in = 0; in < in_features_; ++in) {
      sum += static_cast<double>(LoadElement(task.x, task.x_dtype, row * task.x_stride + in)) *
             weights_[out * in_features_ + in];
    }
    return sum;
  }

 private:
  std::int64_t in_features_;
  std::vector<float> weights_;
  std::vector<float> bias_;
};

void RotateRow(const ProjectionTask& task, std::int64_t row, float* y) {
  std::vector<float> cos_sin(static_cast<std::size_t>(task.rotary->params().dim));
  task.rotary->Turn(task.first_position + row, cos_sin.data());
  for (int head = 0; head < task.num_rotary_heads; ++head) {
    task.rotary->Apply(cos_sin.data(), y + head * task.rotary_head_dim);
  }
}

class ReferenceProjections final : public ProjectionBackend {
 public:
  absl::StatusOr<std::shared_ptr<const PackedProjection>> Pack(
      std::int64_t in_features, std::span<const ProjectionPart> parts) override {
    return std::make_shared<PlainProjection>(in_features, parts);
  }
  std::size_t PackedBytes(std::int64_t in_features, std::int64_t out_features) const override {
    return static_cast<std::size_t>((in_features + 1) * out_features) * sizeof(float);
  }

  absl::Status Project(std::span<const ProjectionTask> tasks) override {
    for (const ProjectionTask& task : tasks) {
      const auto& projection = static_cast<const PlainProjection&>(*task.projection);
      for (std::int64_t row = 0; row < task.num_rows; ++row) {
        for (std::int64_t out = 0; out < projection.out_features(); ++out) {
          StoreElement(task.y, task.y_dtype, row * task.y_stride + out,
                       static_cast<float>(projection.Element(task, row, out)));
        }
        if (task.rotary != nullptr) {
          RotateRow(task, row, static_cast<float*>(task.y) + row * task.y_stride);
        }
      }
    }
    return absl::OkStatus();
  }
};

}  // namespace

std::unique_ptr<ProjectionBackend> MakeReferenceProjections() {
  return std::make_unique<ReferenceProjections>();
}

}  // namespace attention::reference
