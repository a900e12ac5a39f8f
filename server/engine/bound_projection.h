// Projections in memory that goes with the backend that packed them, as a GPU's does.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/api/attention_backend.h"
#include "kernels/api/projection.h"

namespace attention::server {

// The same weights on one device or on several, each of which knows its own by address. Immutable.
class BoundProjection final : public PackedProjection {
 public:
  struct Replica {
    const AttentionBackend* device = nullptr;  // never read
    std::shared_ptr<const std::atomic<bool>> is_lost;
    std::shared_ptr<const PackedProjection> packed;
  };

  explicit BoundProjection(std::vector<Replica> replicas) : replicas_(std::move(replicas)) {}

  std::int64_t out_features() const override { return replicas_[0].packed->out_features(); }
  std::int64_t in_features() const override { return replicas_[0].packed->in_features(); }
  std::size_t bytes() const override;
  // UNAVAILABLE when it is lost.
  absl::Status Unpack(float* weights, float* bias) const override;
  // True when the weights on any of the devices are lost.
  bool is_lost() const override;

  const std::vector<Replica>& replicas() const { return replicas_; }
  // UNAVAILABLE when it is lost, UNIMPLEMENTED when it was not packed on the device.
  absl::StatusOr<const PackedProjection*> On(const AttentionBackend& device) const;

 private:
  const std::vector<Replica> replicas_;
};

// Packs on several devices, for layers that any of them may be asked for. Thread-safe.
class ReplicatedProjections final : public ProjectionBackend {
 public:
  // Their projections are BoundProjections. They must outlive it.
  explicit ReplicatedProjections(std::vector<ProjectionBackend*> devices)
      : devices_(std::move(devices)) {}

  // The first device's error that has one.
  absl::StatusOr<std::shared_ptr<const PackedProjection>> Pack(
      std::int64_t in_features, std::span<const ProjectionPart> parts) override;
  std::size_t PackedBytes(std::int64_t in_features, std::int64_t out_features) const override;
  // UNIMPLEMENTED: each device projects its own tasks.
  absl::Status Project(std::span<const ProjectionTask> tasks) override;

 private:
  const std::vector<ProjectionBackend*> devices_;
};

}  // namespace attention::server
