// A backend that is made anew after it has failed, behind one address that stays.
//
// A device can fail in ways that nothing short of a new backend mends: a kernel that hit a bug, a
// context whose errors stick. What the old backend allocated either outlives it, as a processor's
// memory does, or is lost with it, as a reset GPU's is (MemoryAllocator::outlives_backend).
//
// Thread-safety: as AttentionBackend, with Recover among the calls of the one worker thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/api/attention_backend.h"
#include "server/base/mutex.h"

namespace attention::server {

using BackendMaker = std::function<absl::StatusOr<std::unique_ptr<AttentionBackend>>()>;

class RecoveringBackend final : public AttentionBackend {
 public:
  // The maker's error when there is no backend to begin with.
  static absl::StatusOr<std::unique_ptr<RecoveringBackend>> Make(BackendMaker maker);

  // Makes another backend in place of the present one, which is abandoned and goes when its last
  // plan does. On failure, which is the maker's, the device is unusable until a later Recover
  // succeeds: Plan, Run, AppendKv and RunWeights answer UNAVAILABLE.
  absl::Status Recover();
  bool is_usable() const;

  // These are as of the first backend. The memory is one allocator for all backends: what outlives
  // its backend may be freed at any time, what does not must be forgotten instead.
  const BackendInfo& info() const override { return info_; }
  MemoryAllocator& memory() override { return memory_; }
  MemoryAllocator& host_memory() override { return host_memory_; }
  const DeviceCeilings& Ceilings() override { return ceilings_; }

  // UNAVAILABLE while the device is unusable.
  absl::Status Supports(const AttentionParams& params, std::int64_t kv_len) const override;
  KvPageLayout PageLayout(const KvGeometry& geometry, std::int64_t page_size) const override;
  std::string KernelName(const AttentionTask& task) const override;
  absl::StatusOr<std::unique_ptr<AttentionPlan>> Plan(
      std::span<const AttentionTask> tasks) override;
  // UNAVAILABLE for a plan of a backend that is gone.
  absl::StatusOr<RunState> Run(AttentionPlan& plan, const std::atomic<bool>* should_yield) override;
  absl::Status AppendKv(std::span<const KvAppendTask> tasks) override;
  absl::Status SavePages(std::span<const PageCopy> copies) override;
  absl::Status RestorePages(std::span<const PageCopy> copies) override;
  absl::Status CopyPages(std::span<const DevicePageCopy> copies) override;
  absl::Status ReadRows(std::span<const StoredRowsTask> tasks) override;
  absl::Status WriteRows(std::span<const StoredRowsTask> tasks) override;
  absl::Status MoveTokens(std::span<const MoveTokensTask> tasks) override;
  absl::Status RunWeights(const WeightsTask& task) override;
  ProjectionBackend* projections() override { return has_projections_ ? &projections_ : nullptr; }

 private:
  // The projections of the present backend. Weights that a backend has packed outlive it if its
  // memory does, and else are lost.
  class Projections final : public ProjectionBackend {
   public:
    explicit Projections(const RecoveringBackend& owner) : owner_(owner) {}
    absl::StatusOr<std::shared_ptr<const PackedProjection>> Pack(
        std::int64_t in_features, std::span<const ProjectionPart> parts) override;
    std::size_t PackedBytes(std::int64_t in_features, std::int64_t out_features) const override;
    double chunk_flops() const override;
    absl::Status Project(std::span<const ProjectionTask> tasks) override;

   private:
    absl::Status ProjectBound(ProjectionBackend& projections,
                              std::span<const ProjectionTask> tasks) const;

    const RecoveringBackend& owner_;
  };

  // One of the present backend's allocators.
  class Memory final : public MemoryAllocator {
   public:
    using Choice = MemoryAllocator& (AttentionBackend::*)();
    Memory(const RecoveringBackend& owner, Choice choice, bool outlives_backend)
        : owner_(owner), choice_(choice), outlives_backend_(outlives_backend) {}
    void* Allocate(std::size_t bytes) override;
    void Free(void* memory, std::size_t bytes) override;
    void Zero(void* memory, std::size_t bytes) override;
    bool outlives_backend() const override { return outlives_backend_; }
    std::size_t free_bytes() const override;

   private:
    const RecoveringBackend& owner_;
    const Choice choice_;
    const bool outlives_backend_;
  };

  RecoveringBackend(BackendMaker maker, std::shared_ptr<AttentionBackend> backend);

  // The flag of everything that goes with a backend's memory: set when the backend is given up.
  using LostFlag = std::shared_ptr<std::atomic<bool>>;

  std::shared_ptr<AttentionBackend> Current() const;
  // UNAVAILABLE while the device is unusable.
  absl::StatusOr<std::shared_ptr<AttentionBackend>> Usable() const;

  const BackendMaker maker_;
  Memory memory_;
  Memory host_memory_;
  Projections projections_{*this};
  const BackendInfo info_;
  const bool has_projections_;
  const DeviceCeilings ceilings_;

  mutable Mutex mutex_;
  std::shared_ptr<AttentionBackend> backend_ ABSL_GUARDED_BY(mutex_);
  LostFlag is_memory_lost_ ABSL_GUARDED_BY(mutex_) = std::make_shared<std::atomic<bool>>(false);
  absl::Status failure_ ABSL_GUARDED_BY(mutex_);  // why it is not usable
};

}  // namespace attention::server
