#include "tests/simt/block.h"

#include <algorithm>
#include <boost/context/fiber.hpp>
#include <boost/context/pooled_fixedsize_stack.hpp>
#include <boost/context/protected_fixedsize_stack.hpp>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <string>
#include <utility>

namespace attention::simt {
namespace {

namespace context = boost::context;

constexpr std::size_t kStackBytes = std::size_t{128} << 10;

enum class State { kReady, kAtWarp, kAtBlock, kWaiting, kPaused, kDone };

class BlockRun;

class FiberThread final : public Thread {
 public:
  FiberThread(BlockRun& run, int index) : run_(run), index_(index) {}

  int index() const override { return index_; }
  int block_index() const override;
  int num_blocks() const override;
  void Meet(const Arrival& arrival,
            const std::function<void(void* const (&)[kWarpThreads])>& combine) override;
  void MeetWarpgroup(
      const Arrival& arrival,
      const std::function<void(void* const (&)[kWarpgroupThreads])>& combine) override;
  void WaitUntil(const char* name, const std::function<bool()>& is_over) override;
  void Pause() override;
  bool MeetBlock(bool value) override;
  AsyncUnit& async() override;
  WgmmaUnit& wgmma() override;
  void BeginCopy(const PendingCopy& copy) override;
  void CommitCopies() override { group_ends_.push_back(copies_.size()); }
  void WaitCopies(int num_newest) override;

  void Suspend() { main_ = std::move(main_).resume(); }

  BlockRun& run_;
  const int index_;
  State state_ = State::kReady;
  Arrival arrival_;
  const std::function<bool()>* is_over_ = nullptr;  // what a waiting thread waits for
  context::fiber fiber_;
  context::fiber main_;
  std::vector<PendingCopy> copies_;      // under way, oldest first
  std::vector<std::size_t> group_ends_;  // indices into copies_
};

thread_local FiberThread* current = nullptr;  // several devices run side by side

class BlockRun {
 public:
  BlockRun(int block_index, int num_blocks, int num_threads, SharedMemory shared,
           std::mt19937& random)
      : num_blocks(num_blocks),
        async(shared, random, [this](const std::string& what) { Fail(what); }),
        block_index_(block_index),
        random_(random),
        warps_(num_threads / kWarpThreads),
        warpgroups_((num_threads + kWarpgroupThreads - 1) / kWarpgroupThreads),
        slow_warp_(static_cast<int>(random() % (warps_.size() + warps_.size() / 2 + 1))) {
    for (int i = 0; i < num_threads; ++i) {
      threads_.push_back(std::make_unique<FiberThread>(*this, i));
    }
    for (Meeting& group : warpgroups_) group.wgmma = std::make_unique<WgmmaUnit>(async);
  }

  void Run(const std::function<void(char*)>& kernel) {
    for (const auto& thread : threads_) Begin(*thread, async.shared().data, kernel);
    std::vector<int> order(warps_.size());
    std::iota(order.begin(), order.end(), 0);
    while (num_done_ < threads_.size()) {
      std::shuffle(order.begin(), order.end(), random_);
      bool has_run = false;
      for (int warp : order) has_run |= warp != slow_warp_ && RunWarp(warp);
      // Warps of a GPU do not come at the same pace: one runs when no other can.
      if (!has_run && slow_warp_ < static_cast<int>(warps_.size())) has_run = RunWarp(slow_warp_);
      if (!ReleaseBlock() && !async.Advance(!has_run) && !has_run) {
        Fail("threads wait for each other for ever");
      }
    }
    async.Finish();
    for (const Meeting& group : warpgroups_) group.wgmma->Finish();
  }

  int block_index() const { return block_index_; }

  const int num_blocks;
  AsyncUnit async;

  [[noreturn]] void Fail(const std::string& what) {
    std::fprintf(stderr, "simt: block %d: %s\n", block_index_, what.c_str());
    for (const auto& thread : threads_) {
      std::fprintf(stderr, "  thread %d: state %d, last collective %s\n", thread->index_,
                   static_cast<int>(thread->state_),
                   thread->arrival_.name != nullptr ? thread->arrival_.name : "none");
    }
    std::abort();
  }

  void MeetWarp(FiberThread& thread,
                const std::function<void(void* const (&)[kWarpThreads])>& combine) {
    void* operands[kWarpThreads];
    if (Meet(thread, warps_[thread.index_ / kWarpThreads], operands)) combine(operands);
  }

  void MeetWarpgroup(FiberThread& thread,
                     const std::function<void(void* const (&)[kWarpgroupThreads])>& combine) {
    void* operands[kWarpgroupThreads];
    if (Meet(thread, warpgroups_[thread.index_ / kWarpgroupThreads], operands)) combine(operands);
  }

  WgmmaUnit& wgmma_of(int thread) { return *warpgroups_[thread / kWarpgroupThreads].wgmma; }

  bool MeetBlock(FiberThread& thread, bool value) {
    barrier_value_ |= value;
    ++num_at_barrier_;
    thread.state_ = State::kAtBlock;
    thread.Suspend();
    return barrier_result_;
  }

 private:
  // Threads that meet in collectives: a warp or a warpgroup.
  struct Meeting {
    int num_arrived = 0;
    std::unique_ptr<WgmmaUnit> wgmma;  // of a warpgroup
  };

  // Waits for all; true for the last one, which has the operands of all.
  template <int kThreads>
  bool Meet(FiberThread& thread, Meeting& meeting, void* (&operands)[kThreads]) {
    if (++meeting.num_arrived < kThreads) {
      thread.state_ = State::kAtWarp;
      thread.Suspend();
      return false;
    }
    meeting.num_arrived = 0;
    const std::size_t first = thread.index_ / kThreads * kThreads;
    if (first + kThreads > threads_.size()) Fail("a collective of threads that are not there");
    for (int i = 0; i < kThreads; ++i) {
      FiberThread& other = *threads_[first + i];
      if (std::strcmp(other.arrival_.name, thread.arrival_.name) != 0) {
        Fail("lanes of a warp meet in different collectives");
      }
      operands[i] = other.arrival_.operands;
      other.state_ = State::kReady;
    }
    return true;
  }

  void Begin(FiberThread& thread, char* shared, const std::function<void(char*)>& kernel) {
    static thread_local context::pooled_fixedsize_stack stacks(kStackBytes);
    thread.fiber_ = context::fiber(std::allocator_arg, stacks,
                                   [this, &thread, shared, &kernel](context::fiber&& main) {
                                     thread.main_ = std::move(main);
                                     kernel(shared);
                                     thread.state_ = State::kDone;
                                     ++num_done_;
                                     return std::move(thread.main_);
                                   });
  }

  bool RunWarp(int warp) {
    bool has_run = EndPause(warp);
    for (bool again = true; again;) {
      again = false;
      for (int lane = 0; lane < kWarpThreads; ++lane) {
        FiberThread& thread = *threads_[warp * kWarpThreads + lane];
        if (thread.state_ == State::kWaiting && (*thread.is_over_)()) {
          thread.state_ = State::kReady;
        }
        if (thread.state_ != State::kReady) continue;
        current = &thread;
        thread.fiber_ = std::move(thread.fiber_).resume();
        again = has_run = true;
      }
    }
    return has_run;
  }

  // True if lanes of the warp were pausing. A coin says whether they still do.
  bool EndPause(int warp) {
    bool has_paused = false;
    const bool ends = random_() % 2 == 0;
    for (int lane = 0; lane < kWarpThreads; ++lane) {
      FiberThread& thread = *threads_[warp * kWarpThreads + lane];
      if (thread.state_ != State::kPaused) continue;
      has_paused = true;
      if (ends) thread.state_ = State::kReady;
    }
    return has_paused;
  }

  // Lets all threads go on once they have come to the barrier.
  bool ReleaseBlock() {
    if (num_at_barrier_ == 0 || num_at_barrier_ < threads_.size()) return false;
    num_at_barrier_ = 0;
    barrier_result_ = std::exchange(barrier_value_, false);
    for (const auto& thread : threads_) thread->state_ = State::kReady;
    return true;
  }

  const int block_index_;
  std::mt19937& random_;
  std::vector<Meeting> warps_, warpgroups_;
  const int slow_warp_;  // perhaps none
  std::vector<std::unique_ptr<FiberThread>> threads_;
  std::size_t num_done_ = 0;
  std::size_t num_at_barrier_ = 0;
  bool barrier_value_ = false;
  bool barrier_result_ = false;
};

int FiberThread::block_index() const { return run_.block_index(); }
int FiberThread::num_blocks() const { return run_.num_blocks; }
AsyncUnit& FiberThread::async() { return run_.async; }
WgmmaUnit& FiberThread::wgmma() { return run_.wgmma_of(index_); }

void FiberThread::Meet(const Arrival& arrival,
                       const std::function<void(void* const (&)[kWarpThreads])>& combine) {
  arrival_ = arrival;
  run_.MeetWarp(*this, combine);
}

void FiberThread::MeetWarpgroup(
    const Arrival& arrival,
    const std::function<void(void* const (&)[kWarpgroupThreads])>& combine) {
  arrival_ = arrival;
  run_.MeetWarpgroup(*this, combine);
}

void FiberThread::WaitUntil(const char* name, const std::function<bool()>& is_over) {
  if (is_over()) return;
  arrival_ = {name, nullptr};
  is_over_ = &is_over;
  state_ = State::kWaiting;
  Suspend();
}

void FiberThread::Pause() {
  state_ = State::kPaused;
  Suspend();
}

bool FiberThread::MeetBlock(bool value) {
  arrival_ = {"barrier", nullptr};
  return run_.MeetBlock(*this, value);
}

void FiberThread::BeginCopy(const PendingCopy& copy) {
  if (reinterpret_cast<std::uintptr_t>(copy.shared) % 16 != 0 ||
      reinterpret_cast<std::uintptr_t>(copy.global) % 16 != 0) {
    run_.Fail("an asynchronous copy is not aligned to 16 bytes");
  }
  std::memset(copy.shared, 0xff, 16);
  copies_.push_back(copy);
}

void FiberThread::WaitCopies(int num_newest) {
  if (group_ends_.size() <= static_cast<std::size_t>(num_newest)) return;
  const std::size_t num_groups = group_ends_.size() - num_newest;
  const std::size_t num_copies = group_ends_[num_groups - 1];
  for (std::size_t i = 0; i < num_copies; ++i) {
    if (copies_[i].global == nullptr) {
      std::memset(copies_[i].shared, 0, 16);
    } else {
      std::memcpy(copies_[i].shared, copies_[i].global, 16);
    }
  }
  copies_.erase(copies_.begin(), copies_.begin() + static_cast<std::ptrdiff_t>(num_copies));
  group_ends_.erase(group_ends_.begin(),
                    group_ends_.begin() + static_cast<std::ptrdiff_t>(num_groups));
  for (std::size_t& end : group_ends_) end -= num_copies;
}

}  // namespace

Thread& Current() { return *current; }

void RunBlocks(int num_blocks, int num_threads, int shared_bytes, std::uint32_t seed,
               const std::function<void(char*)>& kernel) {
  std::mt19937 random(seed);
  std::vector<int> order(num_blocks);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), random);
  for (int block : order) {
    // 16 bytes of alignment, as a GPU gives; of exactly the size that the kernel asked for.
    const std::unique_ptr<char, decltype(&std::free)> shared(
        static_cast<char*>(std::aligned_alloc(16, std::max(16, (shared_bytes + 15) / 16 * 16))),
        &std::free);
    std::memset(shared.get(), 0xff, shared_bytes);
    BlockRun(block, num_blocks, num_threads, {shared.get(), shared_bytes}, random).Run(kernel);
  }
}

}  // namespace attention::simt
