// The making of layers: uploads and conversions, of which so many may be on their way and which are
// packed one after another, because each takes seconds and gigabytes.
//
// Thread-safety: all methods.
#pragma once

#include <atomic>
#include <string>
#include <unordered_map>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/base/background_thread.h"
#include "server/base/mutex.h"

namespace attention::server {

class LayerWork {
 public:
  struct Limits {
    int max_pending = 1;
    int max_pending_per_tenant = 1;
  };

  explicit LayerWork(const Limits& limits) : limits_(limits) {}

  // The right to make one layer; given back when it is destroyed.
  class Slot {
   public:
    Slot() = default;
    Slot(Slot&& other) noexcept
        : work_(std::exchange(other.work_, nullptr)), tenant_(std::move(other.tenant_)) {}
    Slot& operator=(Slot&& other) noexcept {
      std::swap(work_, other.work_);
      std::swap(tenant_, other.tenant_);
      return *this;
    }
    ~Slot() {
      if (work_ != nullptr) work_->GiveBack(tenant_);
    }

   private:
    friend class LayerWork;
    Slot(LayerWork* work, std::string tenant) : work_(work), tenant_(std::move(tenant)) {}

    LayerWork* work_ = nullptr;
    std::string tenant_;
  };

  // RESOURCE_EXHAUSTED with a retry delay: QUOTA_EXCEEDED for the tenant's bound, QUEUE_FULL for
  // that of all.
  absl::StatusOr<Slot> TakeSlot(const std::string& tenant);

  // Runs `work` after what was posted before, on a thread of its own. Only with a slot, which
  // bounds the queue.
  void Post(absl::AnyInvocable<void()> work) { thread_.Post(std::move(work)); }

  // UNAVAILABLE DRAINING once Stop has been called; work that takes long asks now and then.
  absl::Status CheckGoing() const;
  // Waits for the work that was posted, which gives up when it next asks.
  void Stop();

 private:
  void GiveBack(const std::string& tenant);

  const Limits limits_;
  std::atomic<bool> is_stopping_{false};

  Mutex mutex_;
  int num_pending_ ABSL_GUARDED_BY(mutex_) = 0;
  std::unordered_map<std::string, int> pending_of_ ABSL_GUARDED_BY(mutex_);

  BackgroundThread thread_;  // last: what it runs uses the rest
};

}  // namespace attention::server
