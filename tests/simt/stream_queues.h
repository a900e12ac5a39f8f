// The streams of a simulated device: work is queued and done as late, or as early, as the declared
// order allows. What is not ordered by a stream or an event is so done in the wrong order by one
// choice or another, and an event that was forgotten is a wrong result in a test.
//
// Thread-safety: one thread at a time.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <optional>
#include <random>

#include "kernels/cuda/device/device.h"

namespace attention::simt {

// Which streams do their work as soon as it is ready: bit i is stream i. The others do it when
// somebody waits for it, and no more of it than that.
using EagerStreams = unsigned;
inline constexpr EagerStreams kAllEager = (1u << cuda::kNumStreams) - 1;

class StreamQueues {
 public:
  // A place in a stream: behind so many pieces of work.
  struct Point {
    cuda::Stream stream = cuda::Stream::kCompute;
    std::size_t count = 0;
  };

  // Without `eager` each call draws whose turn it is.
  StreamQueues(std::uint32_t seed, std::optional<EagerStreams> eager)
      : random_(seed), eager_(eager) {}

  void Enqueue(cuda::Stream stream, std::function<void()> work);
  Point End(cuda::Stream stream) const;
  // Work that is queued from now on waits for the point.
  void Wait(cuda::Stream stream, Point point);
  // Does what must be done to reach the point.
  void Reach(Point point);
  void Drain();
  // Nothing is queued. Any thread.
  bool is_idle() const { return num_queued_.load() == 0; }

 private:
  struct Work {
    std::optional<Point> waits_for;  // of a wait; else `run` is there
    std::function<void()> run;
  };
  struct Queue {
    std::deque<Work> work;
    std::size_t num_done = 0;
  };

  Queue& Of(cuda::Stream stream) { return queues_[static_cast<int>(stream)]; }
  const Queue& Of(cuda::Stream stream) const { return queues_[static_cast<int>(stream)]; }
  bool IsReached(Point point) const { return Of(point.stream).num_done >= point.count; }
  // True if there was something to do that need not wait.
  bool DoNext(cuda::Stream stream);
  void RunEager();

  std::mt19937 random_;
  const std::optional<EagerStreams> eager_;
  Queue queues_[cuda::kNumStreams];
  std::atomic<std::size_t> num_queued_{0};
};

}  // namespace attention::simt
