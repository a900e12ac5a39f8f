// The open streams: a drain ends those that idle, and Upkeep those that do not move.
//
// Thread-safety: all methods.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "server/base/mutex.h"

namespace attention::server {

class DrainableStream {
 public:
  virtual ~DrainableStream() = default;
  // Ends the stream as soon as nothing is in flight. May be called more than once.
  virtual void BeginDrain() = 0;
  // Ends the stream if it has not moved for longer than it may. Called now and then.
  virtual void EndIfStalled(absl::Time /*now*/) {}
};

class StreamRegistry {
 public:
  // False when draining has begun: the stream is not kept, and its owner ends it.
  bool Add(std::weak_ptr<DrainableStream> stream) {
    MutexLock lock(&mutex_);
    if (is_draining_) return false;
    streams_.push_back(std::move(stream));
    if (streams_.size() < prune_at_) return true;
    std::erase_if(streams_, [](const auto& entry) { return entry.expired(); });
    prune_at_ = 2 * streams_.size() + kMinPruneSize;
    return true;
  }

  void BeginDrain() {
    std::vector<std::weak_ptr<DrainableStream>> streams;
    {
      MutexLock lock(&mutex_);
      is_draining_ = true;
      streams.swap(streams_);
    }
    for (const auto& entry : streams) {
      if (const auto stream = entry.lock()) stream->BeginDrain();
    }
  }

  void EndStalled(absl::Time now) {
    std::vector<std::weak_ptr<DrainableStream>> streams;
    {
      MutexLock lock(&mutex_);
      streams = streams_;
    }
    for (const auto& entry : streams) {
      if (const auto stream = entry.lock()) stream->EndIfStalled(now);
    }
  }

 private:
  static constexpr std::size_t kMinPruneSize = 64;

  Mutex mutex_;
  std::vector<std::weak_ptr<DrainableStream>> streams_ ABSL_GUARDED_BY(mutex_);
  std::size_t prune_at_ ABSL_GUARDED_BY(mutex_) = kMinPruneSize;
  bool is_draining_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace attention::server
