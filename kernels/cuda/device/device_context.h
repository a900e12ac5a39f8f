// The contexts of the process's GPUs, one after another: what was made in a context goes with it.
//
// A fault of a kernel stays: its context answers nothing but the error from then on. Only a new
// context in place of the lost one mends it, and even that CUDA does not promise (README.md). So a
// lost context is left alone: nothing of it is used, and nothing is given back to the one that
// follows, whose memory may have the same addresses.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <shared_mutex>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace attention::cuda {

// Shared by everything that was made in one context. Thread-safety: all methods.
class DeviceContext {
 public:
  // From now on. Waits for calls of IfAlive.
  void Lose() {
    const std::unique_lock lock(mutex_);
    is_lost_ = true;
  }
  bool is_lost() const {
    const std::shared_lock lock(mutex_);
    return is_lost_;
  }

  // Calls `use` unless the context is lost, which it cannot become meanwhile. `use` must not lose
  // it. Returns true if it was called.
  template <typename Use>
  bool IfAlive(Use use) const {
    const std::shared_lock lock(mutex_);
    if (!is_lost_) use();
    return !is_lost_;
  }

 private:
  mutable std::shared_mutex mutex_;
  bool is_lost_ = false;
};

// Thread-safety: all methods.
class ContextTable {
 public:
  // Destroys the device's context and all that is in it. The next call to the device makes another.
  using ResetFunction = std::function<absl::Status(int ordinal)>;

  explicit ContextTable(ResetFunction reset) : reset_(std::move(reset)) {}

  // The context of the device; another one when it was lost. The reset's error, as UNAVAILABLE:
  // the next call tries again.
  absl::StatusOr<std::shared_ptr<DeviceContext>> Enter(int ordinal);

 private:
  const ResetFunction reset_;
  std::mutex mutex_;
  std::map<int, std::shared_ptr<DeviceContext>> contexts_;  // by ordinal
};

}  // namespace attention::cuda
