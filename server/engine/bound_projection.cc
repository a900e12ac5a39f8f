#include "server/engine/bound_projection.h"

#include <algorithm>

#include "server/base/status_macros.h"

namespace attention::server {
namespace {

absl::Status Lost() {
  return absl::UnavailableError("the device failed and lost the layer's weights");
}

}  // namespace

std::size_t BoundProjection::bytes() const {
  std::size_t bytes = 0;
  for (const Replica& replica : replicas_) bytes += replica.packed->bytes();
  return bytes;
}

absl::Status BoundProjection::Unpack(float* weights, float* bias) const {
  return is_lost() ? Lost() : replicas_[0].packed->Unpack(weights, bias);
}

bool BoundProjection::is_lost() const {
  return std::any_of(replicas_.begin(), replicas_.end(),
                     [](const Replica& replica) { return replica.is_lost->load(); });
}

absl::StatusOr<const PackedProjection*> BoundProjection::On(const AttentionBackend& device) const {
  if (is_lost()) return Lost();
  for (const Replica& replica : replicas_) {
    if (replica.device == &device) return replica.packed.get();
  }
  return absl::UnimplementedError("the layer was not packed on the device");
}

absl::StatusOr<std::shared_ptr<const PackedProjection>> ReplicatedProjections::Pack(
    std::int64_t in_features, std::span<const ProjectionPart> parts) {
  std::vector<BoundProjection::Replica> replicas;
  for (ProjectionBackend* device : devices_) {
    ATTENTION_ASSIGN_OR_RETURN(const std::shared_ptr<const PackedProjection> packed,
                               device->Pack(in_features, parts));
    const auto& own = static_cast<const BoundProjection&>(*packed).replicas();
    replicas.insert(replicas.end(), own.begin(), own.end());
  }
  return std::make_shared<const BoundProjection>(std::move(replicas));
}

std::size_t ReplicatedProjections::PackedBytes(std::int64_t in_features,
                                               std::int64_t out_features) const {
  std::size_t bytes = 0;
  for (const ProjectionBackend* device : devices_) {
    bytes += device->PackedBytes(in_features, out_features);
  }
  return bytes;
}

absl::Status ReplicatedProjections::Project(std::span<const ProjectionTask>) {
  return absl::UnimplementedError("projections are computed by the device that has the task");
}

}  // namespace attention::server
