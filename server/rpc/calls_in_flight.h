// The calls that gRPC has not done with, from the wait for each to its last event.
//
// Nothing but a call begins operations on the completion queue. So once no more calls are waited
// for and all have left, the queue can be shut down, and no operation can come after that.
//
// Thread-safety: all methods.
#pragma once

#include <chrono>
#include <new>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "server/base/mutex.h"

namespace attention::server {

class CallsInFlight {
 public:
  // A call's place among them, first of its members, so that the rest of it is gone before it
  // leaves.
  class Place {
   public:
    explicit Place(CallsInFlight& calls) : calls_(calls) {}
    ~Place() {
      if (is_taken_) calls_.Leave();
    }
    Place(const Place&) = delete;
    Place& operator=(const Place&) = delete;

    // Takes the place and runs `ask`, which asks gRPC for the next call. False, with nothing done,
    // when no more are waited for. When it returns true the call may have come, ended and gone.
    template <typename Ask>
    bool Listen(Ask ask) {
      MutexLock lock(&calls_.mutex_);
      if (calls_.has_ended_listening_) return false;
      is_taken_ = true;
      ++calls_.num_places_;
      ask();
      return true;
    }

   private:
    CallsInFlight& calls_;
    bool is_taken_ = false;
  };

  // Runs `listen`, which waits for the next call, again and again until memory suffices for it:
  // else the method would never hear another call.
  template <typename Listen>
  void KeepListening(Listen listen) {
    while (IsListening()) {
      try {
        return listen();
      } catch (const std::bad_alloc&) {
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      }
    }
  }

  // No call is waited for from now on.
  void EndListening() {
    MutexLock lock(&mutex_);
    has_ended_listening_ = true;
  }
  // Waits until no call has a place any more. After EndListening and the end of the connections.
  void AwaitAllLeft() {
    MutexLock lock(&mutex_);
    has_changed_.Await(&mutex_, [this] { return num_places_ == 0; });
  }

  // Adds a call that a drain waits for: one that has come, and is not a watch of the health
  // service, which its client never ends.
  void Add(bool is_stream) {
    MutexLock lock(&mutex_);
    ++num_open_;
    num_streams_ += is_stream;
  }
  void Remove(bool is_stream) {
    MutexLock lock(&mutex_);
    num_streams_ -= is_stream;
    if (--num_open_ == 0) has_changed_.NotifyAll();
  }
  // False when the deadline came first.
  bool AwaitNone(absl::Time deadline) {
    MutexLock lock(&mutex_);
    return has_changed_.AwaitUntil(&mutex_, deadline, [this] { return num_open_ == 0; });
  }
  int num_open() const {
    MutexLock lock(&mutex_);
    return num_open_;
  }
  // The streams among the open calls.
  int num_streams() const {
    MutexLock lock(&mutex_);
    return num_streams_;
  }

 private:
  bool IsListening() const {
    MutexLock lock(&mutex_);
    return !has_ended_listening_;
  }
  void Leave() {
    MutexLock lock(&mutex_);
    // Under the lock: who waits may destroy this as soon as it is released.
    if (--num_places_ == 0) has_changed_.NotifyAll();
  }

  mutable Mutex mutex_;
  CondVar has_changed_;
  bool has_ended_listening_ ABSL_GUARDED_BY(mutex_) = false;
  int num_places_ ABSL_GUARDED_BY(mutex_) = 0;
  int num_open_ ABSL_GUARDED_BY(mutex_) = 0;
  int num_streams_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace attention::server
