// One thread for work that takes longer than a thread that serves others may be kept.
//
// Thread-safety: all methods.
#pragma once

#include <deque>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "server/base/contain_exceptions.h"
#include "server/base/mutex.h"

namespace attention::server {

class BackgroundThread {
 public:
  BackgroundThread() : thread_([this] { Loop(); }) {}
  // Runs what was posted, then ends.
  ~BackgroundThread() {
    {
      MutexLock lock(&mutex_);
      is_stopping_ = true;
    }
    has_work_.NotifyAll();
    thread_.join();
  }
  BackgroundThread(const BackgroundThread&) = delete;
  BackgroundThread& operator=(const BackgroundThread&) = delete;

  // Runs `work` after all that was posted before. What it throws is lost, and the thread goes on.
  void Post(absl::AnyInvocable<void()> work) {
    {
      MutexLock lock(&mutex_);
      queue_.push_back(std::move(work));
    }
    has_work_.NotifyAll();
  }

  // Waits until all that was posted has run.
  void AwaitIdle() {
    MutexLock lock(&mutex_);
    is_idle_.Await(&mutex_, [this] { return queue_.empty() && !is_running_; });
  }

 private:
  void Loop() {
    for (;;) {
      absl::AnyInvocable<void()> work;
      {
        MutexLock lock(&mutex_);
        has_work_.Await(&mutex_, [this] { return is_stopping_ || !queue_.empty(); });
        if (queue_.empty()) return;
        work = std::move(queue_.front());
        queue_.pop_front();
        is_running_ = true;
      }
      ContainExceptions([&] {
        work();
        return absl::OkStatus();
      }).IgnoreError();
      work = nullptr;
      {
        MutexLock lock(&mutex_);
        is_running_ = false;
      }
      is_idle_.NotifyAll();
    }
  }

  Mutex mutex_;
  CondVar has_work_;
  CondVar is_idle_;
  std::deque<absl::AnyInvocable<void()>> queue_ ABSL_GUARDED_BY(mutex_);
  bool is_running_ ABSL_GUARDED_BY(mutex_) = false;
  bool is_stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace attention::server
