// Time that stands still until the test moves it.
#pragma once

#include <functional>
#include <map>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "client/internal/call/timer.h"

namespace attention::client::internal {

class FakeTimer final : public Timer {
 public:
  explicit FakeTimer(absl::Time now = absl::FromUnixSeconds(1000)) : now_(now) {}

  absl::Time Now() override {
    absl::MutexLock lock(&mutex_);
    return now_;
  }

  void RunAt(absl::Time when, std::function<void()> action) override {
    absl::MutexLock lock(&mutex_);
    if (!is_closed_) actions_.emplace(when, std::move(action));
  }

  // Waits until an action is due, moves time to it and runs it. Returns how far time moved.
  absl::Duration RunNext() {
    std::function<void()> action;
    absl::Duration step;
    {
      absl::MutexLock lock(&mutex_);
      mutex_.Await(absl::Condition(
          +[](FakeTimer* timer) ABSL_NO_THREAD_SAFETY_ANALYSIS { return !timer->actions_.empty(); },
          this));
      const auto next = actions_.begin();
      step = next->first - now_;
      now_ = next->first;
      action = std::move(next->second);
      actions_.erase(next);
    }
    action();
    return step;
  }

  // Forgets the actions that are left and all that are added later. An action may hold the owner of
  // this timer, so a test that may leave some calls this in the end.
  void Close() {
    std::multimap<absl::Time, std::function<void()>> actions;
    absl::MutexLock lock(&mutex_);
    actions.swap(actions_);
    is_closed_ = true;
  }

  std::size_t num_actions() {
    absl::MutexLock lock(&mutex_);
    return actions_.size();
  }

 private:
  absl::Mutex mutex_;
  absl::Time now_ ABSL_GUARDED_BY(mutex_);
  bool is_closed_ ABSL_GUARDED_BY(mutex_) = false;
  std::multimap<absl::Time, std::function<void()>> actions_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace attention::client::internal
