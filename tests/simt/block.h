// Executes device code on the host: the threads of a block are fibers of one thread of the system,
// switched where they wait for each other.
//
// Checked on the way, each with an abort that names the kernel's block and thread: lanes of
// a warp that meet in different collectives, threads that never reach a barrier, shared memory past
// its size (with the address sanitizer), copies read before they were waited for (their target
// holds NaN until then), and what async_unit.h and wgmma_unit.h add. Warps run in an order drawn
// from a seed, and often one of them only when no other can, so that code which needs a barrier and
// has none is likely to show. Not modelled: speed, bank conflicts, the memory model, and the order
// in which matrix units add (here one rounding of the exact sum).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#include "tests/simt/async_unit.h"
#include "tests/simt/wgmma_unit.h"

namespace attention::simt {

inline constexpr int kWarpThreads = 32;

// A lane's part in a collective of its warp: its operands, and the name of the collective.
struct Arrival {
  const char* name = nullptr;
  void* operands = nullptr;
};

// A copy that was issued but not waited for.
struct PendingCopy {
  void* shared = nullptr;
  const void* global = nullptr;  // null: zeros
};

// The running thread of the running block.
class Thread {
 public:
  virtual ~Thread() = default;

  virtual int index() const = 0;
  virtual int block_index() const = 0;
  virtual int num_blocks() const = 0;

  // Waits until all lanes of the warp have come with the same name; the last one applies `combine`
  // to the operands of all.
  virtual void Meet(const Arrival& arrival,
                    const std::function<void(void* const (&operands)[kWarpThreads])>& combine) = 0;

  // The same for the four warps of a warpgroup.
  virtual void MeetWarpgroup(
      const Arrival& arrival,
      const std::function<void(void* const (&operands)[kWarpgroupThreads])>& combine) = 0;

  // Waits until `is_over`; `name` is said when that never comes.
  virtual void WaitUntil(const char* name, const std::function<bool()>& is_over) = 0;

  // Lets other warps run for a while: what the warp waits for takes time on a GPU.
  virtual void Pause() = 0;

  // Waits for all threads of the block; whether one of them said `value`.
  virtual bool MeetBlock(bool value) = 0;

  virtual AsyncUnit& async() = 0;
  virtual WgmmaUnit& wgmma() = 0;  // of the thread's warpgroup

  virtual void BeginCopy(const PendingCopy& copy) = 0;
  virtual void CommitCopies() = 0;
  virtual void WaitCopies(int num_newest) = 0;
};

// The thread whose code runs now.
Thread& Current();

// Runs `kernel(shared)` as blocks [0, num_blocks), one after the other in an order drawn from the
// seed. Shared memory has `shared_bytes` and holds NaNs at first.
void RunBlocks(int num_blocks, int num_threads, int shared_bytes, std::uint32_t seed,
               const std::function<void(char* shared)>& kernel);

}  // namespace attention::simt
