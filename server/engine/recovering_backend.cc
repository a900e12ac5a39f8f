#include "server/engine/recovering_backend.h"

#include <atomic>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/base/contain_exceptions.h"
#include "server/base/status_macros.h"
#include "server/engine/bound_projection.h"

namespace attention::server {
namespace {

// A plan and the backend that made it, which lives as long.
class BoundPlan final : public AttentionPlan {
 public:
  BoundPlan(std::shared_ptr<AttentionBackend> backend, std::unique_ptr<AttentionPlan> plan)
      : backend_(std::move(backend)), plan_(std::move(plan)) {}

  PlanProgress progress() const override { return plan_->progress(); }
  const AttentionBackend* backend() const { return backend_.get(); }
  AttentionPlan& plan() { return *plan_; }

 private:
  std::shared_ptr<AttentionBackend> backend_;
  std::unique_ptr<AttentionPlan> plan_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<RecoveringBackend>> RecoveringBackend::Make(BackendMaker maker) {
  ATTENTION_ASSIGN_OR_RETURN(std::unique_ptr<AttentionBackend> backend, maker());
  return std::unique_ptr<RecoveringBackend>(
      new RecoveringBackend(std::move(maker), std::move(backend)));
}

RecoveringBackend::RecoveringBackend(BackendMaker maker, std::shared_ptr<AttentionBackend> backend)
    : maker_(std::move(maker)),
      memory_(*this, &AttentionBackend::memory, backend->memory().outlives_backend()),
      host_memory_(*this, &AttentionBackend::host_memory,
                   backend->host_memory().outlives_backend()),
      info_(backend->info()),
      has_projections_(backend->projections() != nullptr),
      ceilings_(backend->Ceilings()),
      backend_(std::move(backend)) {}

absl::Status RecoveringBackend::Recover() {
  Current()->Abandon();
  absl::StatusOr<std::unique_ptr<AttentionBackend>> made =
      ContainExceptions([this] { return maker_(); });
  std::shared_ptr<AttentionBackend> old;  // ends without the lock
  MutexLock lock(&mutex_);
  if (!memory_.outlives_backend()) is_memory_lost_->store(true);
  failure_ = made.status();
  if (made.ok()) {
    old = std::exchange(backend_, *std::move(made));
    is_memory_lost_ = std::make_shared<std::atomic<bool>>(false);
  }
  return failure_;
}

bool RecoveringBackend::is_usable() const {
  MutexLock lock(&mutex_);
  return failure_.ok();
}

std::shared_ptr<AttentionBackend> RecoveringBackend::Current() const {
  MutexLock lock(&mutex_);
  return backend_;
}

absl::StatusOr<std::shared_ptr<AttentionBackend>> RecoveringBackend::Usable() const {
  MutexLock lock(&mutex_);
  if (failure_.ok()) return backend_;
  return absl::UnavailableError(
      absl::StrCat("the device failed and could not be set up again: ", failure_.message()));
}

void* RecoveringBackend::Memory::Allocate(std::size_t bytes) {
  return (*owner_.Current().*choice_)().Allocate(bytes);
}

void RecoveringBackend::Memory::Free(void* memory, std::size_t bytes) {
  (*owner_.Current().*choice_)().Free(memory, bytes);
}

void RecoveringBackend::Memory::Zero(void* memory, std::size_t bytes) {
  (*owner_.Current().*choice_)().Zero(memory, bytes);
}

std::size_t RecoveringBackend::Memory::free_bytes() const {
  return (*owner_.Current().*choice_)().free_bytes();
}

absl::Status RecoveringBackend::Supports(const AttentionParams& params, std::int64_t kv_len) const {
  ATTENTION_ASSIGN_OR_RETURN(const std::shared_ptr<AttentionBackend> backend, Usable());
  return backend->Supports(params, kv_len);
}

KvPageLayout RecoveringBackend::PageLayout(const KvGeometry& geometry,
                                           std::int64_t page_size) const {
  return Current()->PageLayout(geometry, page_size);
}

std::string RecoveringBackend::KernelName(const AttentionTask& task) const {
  return Current()->KernelName(task);
}

absl::StatusOr<std::unique_ptr<AttentionPlan>> RecoveringBackend::Plan(
    std::span<const AttentionTask> tasks) {
  ATTENTION_ASSIGN_OR_RETURN(std::shared_ptr<AttentionBackend> backend, Usable());
  ATTENTION_ASSIGN_OR_RETURN(std::unique_ptr<AttentionPlan> plan, backend->Plan(tasks));
  return std::make_unique<BoundPlan>(std::move(backend), std::move(plan));
}

absl::StatusOr<RunState> RecoveringBackend::Run(AttentionPlan& plan,
                                                const std::atomic<bool>* should_yield) {
  ATTENTION_ASSIGN_OR_RETURN(const std::shared_ptr<AttentionBackend> backend, Usable());
  auto& bound = static_cast<BoundPlan&>(plan);
  if (bound.backend() != backend.get()) {
    return absl::UnavailableError("the device was set up again while the request was computed");
  }
  return backend->Run(bound.plan(), should_yield);
}

absl::Status RecoveringBackend::AppendKv(std::span<const KvAppendTask> tasks) {
  ATTENTION_ASSIGN_OR_RETURN(const std::shared_ptr<AttentionBackend> backend, Usable());
  return backend->AppendKv(tasks);
}

absl::Status RecoveringBackend::SavePages(std::span<const PageCopy> copies) {
  ATTENTION_ASSIGN_OR_RETURN(const std::shared_ptr<AttentionBackend> backend, Usable());
  return backend->SavePages(copies);
}

absl::Status RecoveringBackend::RestorePages(std::span<const PageCopy> copies) {
  ATTENTION_ASSIGN_OR_RETURN(const std::shared_ptr<AttentionBackend> backend, Usable());
  return backend->RestorePages(copies);
}

absl::Status RecoveringBackend::CopyPages(std::span<const DevicePageCopy> copies) {
  ATTENTION_ASSIGN_OR_RETURN(const std::shared_ptr<AttentionBackend> backend, Usable());
  return backend->CopyPages(copies);
}

absl::StatusOr<std::shared_ptr<const PackedProjection>> RecoveringBackend::Projections::Pack(
    std::int64_t in_features, std::span<const ProjectionPart> parts) {
  // The flag first: of a backend that comes in between the weights count as lost, not as kept.
  LostFlag is_lost;
  {
    MutexLock lock(&owner_.mutex_);
    is_lost = owner_.is_memory_lost_;
  }
  ATTENTION_ASSIGN_OR_RETURN(const std::shared_ptr<AttentionBackend> backend, owner_.Usable());
  ATTENTION_ASSIGN_OR_RETURN(std::shared_ptr<const PackedProjection> packed,
                             backend->projections()->Pack(in_features, parts));
  if (owner_.memory_.outlives_backend()) return packed;
  return std::make_shared<const BoundProjection>(
      std::vector<BoundProjection::Replica>{{&owner_, std::move(is_lost), std::move(packed)}});
}

std::size_t RecoveringBackend::Projections::PackedBytes(std::int64_t in_features,
                                                        std::int64_t out_features) const {
  return owner_.Current()->projections()->PackedBytes(in_features, out_features);
}

double RecoveringBackend::Projections::chunk_flops() const {
  return owner_.Current()->projections()->chunk_flops();
}

absl::Status RecoveringBackend::Projections::Project(std::span<const ProjectionTask> tasks) {
  ATTENTION_ASSIGN_OR_RETURN(const std::shared_ptr<AttentionBackend> backend, owner_.Usable());
  if (owner_.memory_.outlives_backend()) return backend->projections()->Project(tasks);
  return ProjectBound(*backend->projections(), tasks);
}

absl::Status RecoveringBackend::Projections::ProjectBound(
    ProjectionBackend& projections, std::span<const ProjectionTask> tasks) const {
  std::vector<ProjectionTask> unbound(tasks.begin(), tasks.end());
  for (ProjectionTask& task : unbound) {
    ATTENTION_ASSIGN_OR_RETURN(task.projection,
                               static_cast<const BoundProjection&>(*task.projection).On(owner_));
  }
  return projections.Project(unbound);
}

absl::Status RecoveringBackend::ReadRows(std::span<const StoredRowsTask> tasks) {
  ATTENTION_ASSIGN_OR_RETURN(const std::shared_ptr<AttentionBackend> backend, Usable());
  return backend->ReadRows(tasks);
}

absl::Status RecoveringBackend::WriteRows(std::span<const StoredRowsTask> tasks) {
  ATTENTION_ASSIGN_OR_RETURN(const std::shared_ptr<AttentionBackend> backend, Usable());
  return backend->WriteRows(tasks);
}

absl::Status RecoveringBackend::MoveTokens(std::span<const MoveTokensTask> tasks) {
  ATTENTION_ASSIGN_OR_RETURN(const std::shared_ptr<AttentionBackend> backend, Usable());
  return backend->MoveTokens(tasks);
}

absl::Status RecoveringBackend::RunWeights(const WeightsTask& task) {
  ATTENTION_ASSIGN_OR_RETURN(const std::shared_ptr<AttentionBackend> backend, Usable());
  return backend->RunWeights(task);
}

}  // namespace attention::server
