// A backend that fails when it is told to, for tests of what becomes of its device.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "tests/support/forwarding_backend.h"

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
class FaultyBackend final : public ForwardingBackend, private MemoryAllocator {
 public:
  explicit FaultyBackend(Faults& faults) : faults_(faults) {
    ++faults_.num_made;
    ++faults_.num_alive;
  }
  ~FaultyBackend() override {
    --faults_.num_alive;
    for (const auto& [memory, bytes] : lost_with_it_) real().memory().Free(memory, bytes);
  }

  absl::Status Supports(const AttentionParams& params, std::int64_t kv_len) const override {
    BeforeCall("Supports");
    return real().Supports(params, kv_len);
  }
  MemoryAllocator& memory() override { return *this; }
  MemoryAllocator& host_memory() override { return real().memory(); }
  absl::StatusOr<RunState> Run(AttentionPlan& plan,
                               const std::atomic<bool>* should_yield) override {
    BeforeCall("Run");
    if (!faults_.run_status.ok()) return faults_.run_status;
    if (should_yield != nullptr && !has_yielded_) {
      has_yielded_ = true;
      return RunState::kYielded;
    }
    return real().Run(plan, nullptr);
  }
  ProjectionBackend* projections() override { return &projections_; }

 private:
  // The real ones, whose packing may fail.
  class Projections final : public ForwardingProjections {
   public:
    explicit Projections(const FaultyBackend& owner)
        : ForwardingProjections(*owner.real().projections()), owner_(owner) {}
    absl::StatusOr<std::shared_ptr<const PackedProjection>> Pack(
        std::int64_t in_features, std::span<const ProjectionPart> parts) override {
      owner_.BeforeCall("Pack");
      return ForwardingProjections::Pack(in_features, parts);
    }

   private:
    const FaultyBackend& owner_;
  };

  void BeforeCall(std::string_view call) const {
    if (faults_.before_call) faults_.before_call(call);
  }

  void* Allocate(std::size_t bytes) override {
    void* memory = real().memory().Allocate(bytes);
    if (!faults_.memory_outlives) lost_with_it_[memory] = bytes;
    return memory;
  }
  void Free(void* memory, std::size_t bytes) override {
    lost_with_it_.erase(memory);
    real().memory().Free(memory, bytes);
  }
  bool outlives_backend() const override { return faults_.memory_outlives; }

  Faults& faults_;
  bool has_yielded_ = false;
  std::map<void*, std::size_t> lost_with_it_;
  Projections projections_{*this};
};

}  // namespace attention::testing
