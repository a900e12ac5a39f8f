#include "kernels/base/thread_pool.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <set>
#include <span>
#include <thread>
#include <vector>

#include "kernels/base/cpu_affinity.h"

namespace attention {
namespace {

TEST(ThreadPoolTest, EveryIndexRunsExactlyOnce) {
  for (int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    for (std::int64_t count : {1, 2, 7, 1000}) {
      std::vector<std::atomic<int>> runs(count);
      pool.ParallelFor(count, [&](std::int64_t index, int) { ++runs[index]; });
      for (const auto& run : runs) EXPECT_EQ(run, 1);
    }
  }
}

TEST(ThreadPoolTest, ThreadNumbersLieInsideThePool) {
  ThreadPool pool(3);
  std::atomic<bool> is_inside{true};
  pool.ParallelFor(300, [&](std::int64_t, int thread) {
    if (thread < 0 || thread >= pool.num_threads()) is_inside = false;
  });
  EXPECT_TRUE(is_inside);
}

// Scratch is indexed by the thread number, so two bodies must never run under the same one at once.
TEST(ThreadPoolTest, NoThreadNumberRunsTwoBodiesAtOnce) {
  ThreadPool pool(4);
  std::vector<int> counters(4, 0);  // unguarded on purpose: the thread sanitizer watches them
  for (int round = 0; round < 50; ++round) {
    pool.ParallelFor(64, [&](std::int64_t, int thread) { ++counters[thread]; });
  }
  int total = 0;
  for (int counter : counters) total += counter;
  EXPECT_EQ(total, 50 * 64);
}

TEST(ThreadPoolTest, WritesOfTheLoopAreSeenAfterIt) {
  ThreadPool pool(3);
  std::vector<int> values(10000, 0);
  for (int round = 1; round <= 20; ++round) {
    pool.ParallelFor(10000, [&](std::int64_t index, int) { values[index] += 1; });
    EXPECT_THAT(values, ::testing::Each(round));
  }
}

TEST(ThreadPoolTest, AnEmptyLoopCallsNothing) {
  ThreadPool pool(2);
  pool.ParallelFor(0, [](std::int64_t, int) { FAIL(); });
  pool.ParallelFor(-1, [](std::int64_t, int) { FAIL(); });
}

TEST(ThreadPoolTest, ThreadsThatFellAsleepWakeUpAgain) {
  ThreadPool pool(2);
  for (int round = 0; round < 5; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));  // a hundred times the spin
    std::atomic<int> sum{0};
    pool.ParallelFor(100, [&](std::int64_t, int) { ++sum; });
    EXPECT_EQ(sum, 100);
  }
}

// Both bodies wait for each other, which only ends if two threads run them.
TEST(ThreadPoolTest, BodiesRunSideBySide) {
  ThreadPool pool(2);
  std::atomic<int> arrived{0};
  pool.ParallelFor(2, [&](std::int64_t, int) {
    ++arrived;
    while (arrived < 2) std::this_thread::yield();
  });
  EXPECT_EQ(arrived, 2);
}

// Both bodies wait for each other, so each thread of the pool runs one.
TEST(ThreadPoolTest, ThreadsStayOnTheirCpusAndTheCallerIsFree) {
  const std::vector<int> available = AvailableCpus();
  ASSERT_FALSE(available.empty());
  const std::vector<int> cpus(available.begin(),
                              available.begin() + std::min<std::ptrdiff_t>(2, available.size()));
  ThreadPool pool{std::span<const int>(cpus)};
  ASSERT_EQ(pool.num_threads(), static_cast<int>(cpus.size()));
  std::atomic<std::size_t> arrived{0};
  std::vector<std::vector<int>> seen(cpus.size());
  pool.ParallelFor(static_cast<std::int64_t>(cpus.size()), [&](std::int64_t, int thread) {
    ++arrived;
    while (arrived < cpus.size()) std::this_thread::yield();
    seen[thread] = AvailableCpus();
  });
  EXPECT_EQ(seen[0], available);
  for (std::size_t i = 1; i < cpus.size(); ++i)
    EXPECT_THAT(seen[i], ::testing::ElementsAre(cpus[i]));
}

TEST(CpuAffinityTest, AThreadIsPinnedOnlyToACpuThatExists) {
  std::thread thread([cpu = AvailableCpus().back()] {
    EXPECT_FALSE(PinThisThread(-1));
    EXPECT_FALSE(PinThisThread(8191));
    EXPECT_FALSE(PinThisThread(1 << 20));
    EXPECT_TRUE(PinThisThread(cpu));
    EXPECT_THAT(AvailableCpus(), ::testing::ElementsAre(cpu));
  });
  thread.join();
}

TEST(ThreadPoolDeathTest, ACpuThatDoesNotExistIsRefused) {
  const int cpus[] = {AvailableCpus().front(), 8191};
  EXPECT_DEATH(ThreadPool{std::span<const int>(cpus)}, "check failed");
}

TEST(ThreadPoolDeathTest, APoolWithoutThreadsIsRefused) {
  EXPECT_DEATH(ThreadPool(0), "num_threads >= 1");
}

}  // namespace
}  // namespace attention
