#include "kernels/base/thread_pool.h"

#include <algorithm>
#include <chrono>

#include "kernels/base/check.h"
#include "kernels/base/cpu_affinity.h"

namespace attention {
namespace {

// The price of waking a sleeping thread on the machines seen: spinning longer would cost more than
// it saves. In time and not in iterations, because a pause instruction takes 40 to 140 cycles.
constexpr std::chrono::microseconds kSpinTime{20};
constexpr int kPausesPerClock = 16;

inline void CpuRelax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#endif
}

// Spins until `done` or until kSpinTime has passed. Returns whether done.
template <typename Condition>
bool SpinUntil(const Condition& done) {
  const auto end = std::chrono::steady_clock::now() + kSpinTime;
  do {
    for (int pause = 0; pause < kPausesPerClock; ++pause) {
      if (done()) return true;
      CpuRelax();
    }
  } while (std::chrono::steady_clock::now() < end);
  return false;
}

}  // namespace

ThreadPool::ThreadPool(int num_threads) {
  ATTENTION_CHECK(num_threads >= 1);
  workers_.reserve(num_threads - 1);
  for (int thread = 1; thread < num_threads; ++thread) {
    workers_.emplace_back([this, thread] { WorkerLoop(thread); });
  }
}

ThreadPool::ThreadPool(std::span<const int> cpus) {
  ATTENTION_CHECK(!cpus.empty());
  const std::vector<int> available = AvailableCpus();
  for (int cpu : cpus) {
    ATTENTION_CHECK(std::find(available.begin(), available.end(), cpu) != available.end());
  }
  workers_.reserve(cpus.size() - 1);
  for (std::size_t thread = 1; thread < cpus.size(); ++thread) {
    workers_.emplace_back([this, thread, cpu = cpus[thread]] {
      // May fail when the CPU is taken away in this very moment: the thread runs elsewhere then.
      (void)PinThisThread(cpu);
      WorkerLoop(static_cast<int>(thread));
    });
  }
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
    generation_.fetch_add(1, std::memory_order_release);
  }
  loop_started_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::ParallelFor(std::int64_t count, const Body& body) {
  if (count <= 0) return;
  if (workers_.empty() || count == 1) {
    for (std::int64_t index = 0; index < count; ++index) body(index, 0);
    return;
  }
  body_ = &body;
  count_ = count;
  next_index_.store(0, std::memory_order_relaxed);
  busy_workers_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
  {
    std::lock_guard<std::mutex> lock(mutex_);
    generation_.fetch_add(1, std::memory_order_release);
  }
  loop_started_.notify_all();
  DrainIndices(/*thread=*/0);
  // Every worker must have left the loop before body_ may change or go out of scope.
  const auto all_done = [this] { return busy_workers_.load(std::memory_order_acquire) == 0; };
  while (!SpinUntil(all_done)) std::this_thread::yield();
}

void ThreadPool::DrainIndices(int thread) {
  for (;;) {
    const std::int64_t index = next_index_.fetch_add(1, std::memory_order_relaxed);
    if (index >= count_) return;
    (*body_)(index, thread);
  }
}

bool ThreadPool::WaitForLoop(std::uint64_t last_seen) {
  SpinUntil([&] { return generation_.load(std::memory_order_acquire) != last_seen; });
  std::unique_lock<std::mutex> lock(mutex_);
  loop_started_.wait(
      lock, [&] { return stopping_ || generation_.load(std::memory_order_relaxed) != last_seen; });
  return !stopping_;
}

void ThreadPool::WorkerLoop(int thread) {
  std::uint64_t last_seen = 0;
  while (WaitForLoop(last_seen)) {
    // ParallelFor waits for every worker, so no generation can be missed.
    ++last_seen;
    DrainIndices(thread);
    busy_workers_.fetch_sub(1, std::memory_order_release);
  }
}

}  // namespace attention
