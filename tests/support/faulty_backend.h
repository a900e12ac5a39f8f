// A backend that fails when it is told to, for tests of what becomes of its device.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "kernels/api/attention_backend.h"
#include "kernels/reference/reference_backend.h"

namespace attention::testing {

// State that a device's backends share, one after another: the faults to come, and how often a
// backend was made. Not thread-safe, but for run_status, which may change between batches.
struct Faults {
  // If set, runs at the beginning of "Supports", "Run" and "Pack", on whatever thread calls them;
  // it may throw, or wait.
  std::function<void(std::string_view call)> before_call;
  absl::Status run_status;
  absl::Status make_status;
  bool memory_outlives = true;
  int num_made = 0;
  int num_alive = 0;
};

// A real backend with faults, and memory that may go with it.
class FaultyBackend final : public AttentionBackend, private MemoryAllocator {
 public:
  explicit FaultyBackend(Faults& faults) : faults_(faults) {
    ++faults_.num_made;
    ++faults_.num_alive;
  }
  ~FaultyBackend() override {
    --faults_.num_alive;
    for (const auto& [memory, bytes] : lost_with_it_) real_->memory().Free(memory, bytes);
  }

  const BackendInfo& info() const override { return real_->info(); }
  MemoryAllocator& memory() override { return *this; }
  MemoryAllocator& host_memory() override { return real_->memory(); }
  absl::Status Supports(const AttentionParams& params) const override {
    BeforeCall("Supports");
    return real_->Supports(params);
  }
  KvPageLayout PageLayout(const KvGeometry& geometry, std::int64_t page_size) const override {
    return real_->PageLayout(geometry, page_size);
  }
  std::string KernelName(const AttentionTask& task) const override {
    return real_->KernelName(task);
  }
  const DeviceCeilings& Ceilings() override { return real_->Ceilings(); }
  absl::StatusOr<std::unique_ptr<AttentionPlan>> Plan(
      std::span<const AttentionTask> tasks) override {
    return real_->Plan(tasks);
  }
  absl::StatusOr<RunState> Run(AttentionPlan& plan,
                               const std::atomic<bool>* should_yield) override {
    BeforeCall("Run");
    if (!faults_.run_status.ok()) return faults_.run_status;
    if (should_yield != nullptr && !has_yielded_) {
      has_yielded_ = true;
      return RunState::kYielded;
    }
    return real_->Run(plan, nullptr);
  }
  absl::Status AppendKv(std::span<const KvAppendTask> tasks) override {
    return real_->AppendKv(tasks);
  }
  absl::Status RunWeights(const WeightsTask& task) override { return real_->RunWeights(task); }
  ProjectionBackend* projections() override { return &projections_; }

 private:
  // The real ones, whose packing may fail.
  class Projections final : public ProjectionBackend {
   public:
    explicit Projections(const FaultyBackend& owner) : owner_(owner) {}
    absl::StatusOr<std::shared_ptr<const PackedProjection>> Pack(
        std::int64_t in_features, std::span<const ProjectionPart> parts) override {
      owner_.BeforeCall("Pack");
      return owner_.real_->projections()->Pack(in_features, parts);
    }
    std::size_t PackedBytes(std::int64_t in_features, std::int64_t out_features) const override {
      return owner_.real_->projections()->PackedBytes(in_features, out_features);
    }
    absl::Status Project(std::span<const ProjectionTask> tasks) override {
      return owner_.real_->projections()->Project(tasks);
    }

   private:
    const FaultyBackend& owner_;
  };

  void BeforeCall(std::string_view call) const {
    if (faults_.before_call) faults_.before_call(call);
  }

  void* Allocate(std::size_t bytes) override {
    void* memory = real_->memory().Allocate(bytes);
    if (!faults_.memory_outlives) lost_with_it_[memory] = bytes;
    return memory;
  }
  void Free(void* memory, std::size_t bytes) override {
    lost_with_it_.erase(memory);
    real_->memory().Free(memory, bytes);
  }
  bool outlives_backend() const override { return faults_.memory_outlives; }

  Faults& faults_;
  bool has_yielded_ = false;
  std::map<void*, std::size_t> lost_with_it_;
  std::unique_ptr<AttentionBackend> real_ = reference::MakeReferenceBackend();
  Projections projections_{*this};
};

}  // namespace attention::testing
