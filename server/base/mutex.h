// std::mutex with the annotations that let clang check locking at compile time.
//
// Not absl::Mutex: distributions ship Abseil without the thread sanitizer's instrumentation, which
// then knows nothing of its locks and reports every access under them as a race.
#pragma once

#include <condition_variable>
#include <mutex>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"

namespace attention::server {

class ABSL_LOCKABLE Mutex {
 public:
  void Lock() ABSL_EXCLUSIVE_LOCK_FUNCTION() { mutex_.lock(); }
  void Unlock() ABSL_UNLOCK_FUNCTION() { mutex_.unlock(); }

 private:
  friend class CondVar;
  std::mutex mutex_;
};

class ABSL_SCOPED_LOCKABLE MutexLock {
 public:
  explicit MutexLock(Mutex* mutex) ABSL_EXCLUSIVE_LOCK_FUNCTION(mutex) : mutex_(mutex) {
    mutex_->Lock();
  }
  ~MutexLock() ABSL_UNLOCK_FUNCTION() { mutex_->Unlock(); }
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;

 private:
  Mutex* mutex_;
};

// Waits for a condition on what a mutex guards. Whoever makes the condition true notifies.
class CondVar {
 public:
  void NotifyAll() { condition_.notify_all(); }

  template <typename Condition>
  void Await(Mutex* mutex, Condition condition) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    std::unique_lock<std::mutex> lock(mutex->mutex_, std::adopt_lock);
    condition_.wait(lock, condition);
    lock.release();
  }

  // False when `deadline`, on the system's clock, came first.
  template <typename Condition>
  bool AwaitUntil(Mutex* mutex, absl::Time deadline, Condition condition)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    std::unique_lock<std::mutex> lock(mutex->mutex_, std::adopt_lock);
    const bool is_true = condition_.wait_until(lock, absl::ToChronoTime(deadline), condition);
    lock.release();
    return is_true;
  }

 private:
  std::condition_variable condition_;
};

}  // namespace attention::server
