// A fixed set of threads that run one parallel loop at a time.
//
// The calling thread takes part in the loop, so a pool of N threads starts N - 1 of its own.
// Indices are handed out one by one from an atomic counter: put the longest work first. Sleeping
// workers are woken through a condition variable after a short spin, because waking a sleeping vCPU
// costs 10-20 us, which is the length of a small attention call.
//
// Thread-safety: ParallelFor may be called from one thread at a time.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

namespace attention {

class ThreadPool {
 public:
  // Called as body(index, thread) with index in [0, count) and thread in [0, num_threads()). It
  // must not throw.
  using Body = std::function<void(std::int64_t index, int thread)>;

  explicit ThreadPool(int num_threads);
  // A thread for each CPU: the pool's own are pinned to all but the first, which is left to the
  // calling thread. That one is not pinned; it may do so itself (PinThisThread). The CPUs must be
  // available (AvailableCpus) and there must be one; the check aborts.
  explicit ThreadPool(std::span<const int> cpus);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Runs body for every index and returns when all have finished.
  void ParallelFor(std::int64_t count, const Body& body);

 private:
  void WorkerLoop(int thread);
  void DrainIndices(int thread);
  bool WaitForLoop(std::uint64_t last_seen);

  std::mutex mutex_;
  std::condition_variable loop_started_;
  bool stopping_ = false;                     // guarded by mutex_
  std::atomic<std::uint64_t> generation_{0};  // written under mutex_, read while spinning

  // The current loop. Written by ParallelFor before generation_ grows, read by workers after.
  const Body* body_ = nullptr;
  std::int64_t count_ = 0;
  std::atomic<std::int64_t> next_index_{0};
  std::atomic<int> busy_workers_{0};

  std::vector<std::thread> workers_;
};

}  // namespace attention
