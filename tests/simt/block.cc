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

enum class State { kReady, kAtWarp, kAtBlock, kDone };

class BlockRun;

class FiberThread final : public Thread {
 public:
  FiberThread(BlockRun& run, int index) : run_(run), index_(index) {}

  int index() const override { return index_; }
  int block_index() const override;
  void Meet(const Arrival& arrival,
            const std::function<void(void* const (&)[kWarpThreads])>& combine) override;
  bool MeetBlock(bool value) override;
  void BeginCopy(const PendingCopy& copy) override;
  void CommitCopies() override { group_ends_.push_back(copies_.size()); }
  void WaitCopies(int num_newest) override;

  void Suspend() { main_ = std::move(main_).resume(); }

  BlockRun& run_;
  const int index_;
  State state_ = State::kReady;
  Arrival arrival_;
  context::fiber fiber_;
  context::fiber main_;
  std::vector<PendingCopy> copies_;      // under way, oldest first
  std::vector<std::size_t> group_ends_;  // indices into copies_
};

FiberThread* current = nullptr;

class BlockRun {
 public:
  BlockRun(int block_index, int num_threads, std::mt19937& random)
      : block_index_(block_index), random_(random), warps_(num_threads / kWarpThreads) {
    for (int i = 0; i < num_threads; ++i) {
      threads_.push_back(std::make_unique<FiberThread>(*this, i));
    }
  }

  void Run(char* shared, const std::function<void(char*)>& kernel) {
    for (const auto& thread : threads_) Begin(*thread, shared, kernel);
    std::vector<int> order(warps_.size());
    std::iota(order.begin(), order.end(), 0);
    while (num_done_ < threads_.size()) {
      std::shuffle(order.begin(), order.end(), random_);
      bool has_run = false;
      for (int warp : order) has_run |= RunWarp(warp);
      if (!ReleaseBlock() && !has_run) Fail("threads wait for each other for ever");
    }
  }

  int block_index() const { return block_index_; }

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
    WarpState& warp = warps_[thread.index_ / kWarpThreads];
    if (++warp.num_arrived < kWarpThreads) {
      thread.state_ = State::kAtWarp;
      thread.Suspend();
      return;
    }
    warp.num_arrived = 0;
    void* operands[kWarpThreads];
    const int first = thread.index_ / kWarpThreads * kWarpThreads;
    for (int lane = 0; lane < kWarpThreads; ++lane) {
      FiberThread& other = *threads_[first + lane];
      if (std::strcmp(other.arrival_.name, thread.arrival_.name) != 0) {
        Fail("lanes of a warp meet in different collectives");
      }
      operands[lane] = other.arrival_.operands;
      other.state_ = State::kReady;
    }
    combine(operands);
  }

  bool MeetBlock(FiberThread& thread, bool value) {
    barrier_value_ |= value;
    ++num_at_barrier_;
    thread.state_ = State::kAtBlock;
    thread.Suspend();
    return barrier_result_;
  }

 private:
  struct WarpState {
    int num_arrived = 0;
  };

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
    bool has_run = false;
    for (bool again = true; again;) {
      again = false;
      for (int lane = 0; lane < kWarpThreads; ++lane) {
        FiberThread& thread = *threads_[warp * kWarpThreads + lane];
        if (thread.state_ != State::kReady) continue;
        current = &thread;
        thread.fiber_ = std::move(thread.fiber_).resume();
        again = has_run = true;
      }
    }
    return has_run;
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
  std::vector<WarpState> warps_;
  std::vector<std::unique_ptr<FiberThread>> threads_;
  std::size_t num_done_ = 0;
  std::size_t num_at_barrier_ = 0;
  bool barrier_value_ = false;
  bool barrier_result_ = false;
};

int FiberThread::block_index() const { return run_.block_index(); }

void FiberThread::Meet(const Arrival& arrival,
                       const std::function<void(void* const (&)[kWarpThreads])>& combine) {
  arrival_ = arrival;
  run_.MeetWarp(*this, combine);
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
    BlockRun(block, num_threads, random).Run(shared.get(), kernel);
  }
}

}  // namespace attention::simt
