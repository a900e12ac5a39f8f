// The units beside the threads of a block on compute capability 9.0: mbarriers, bulk copies, named
// barriers, and the two views of shared memory (proxies) that a fence joins.
//
// Stricter than hardware where hardware leaves things undefined, each with an abort that says what:
// an mbarrier that was not initialised or was overwritten, more arrivals than it counts, bulk
// copies that are not aligned, too long or under way when the block ends. The target of a bulk copy
// holds NaNs from its issue to its completion, which comes when the seed says so.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <random>
#include <string>
#include <vector>

namespace attention::simt {

struct SharedMemory {
  char* data = nullptr;
  int bytes = 0;

  bool Contains(const void* address, std::int64_t size) const {
    const auto* begin = static_cast<const char*>(address);
    return begin >= data && size >= 0 && begin + size <= data + bytes;
  }
};

// Shared memory does not begin at address 0: its first KiB belongs to the system (CUDA programming
// guide, "Shared Memory" of compute capability 8.x and 9.0).
inline constexpr std::uint32_t kSharedBase = 1024;

using FailFunction = std::function<void(const std::string&)>;

class AsyncUnit {
 public:
  AsyncUnit(SharedMemory shared, std::mt19937& random, FailFunction fail);

  const SharedMemory& shared() const { return shared_; }
  const FailFunction& fail() const { return fail_; }

  // Shared memory as wgmma sees it: what bulk copies brought, and what threads wrote before
  // JoinProxies. One thread's fence shows what all wrote, which is more than hardware promises.
  const char* async_view() const { return async_view_.data(); }
  void JoinProxies();

  // --- mbarriers (PTX ISA, "Parallel Synchronization and Communication Instructions: mbarrier")
  // ---

  void InitBarrier(std::uint64_t* barrier, int arrivals);
  // An arrival, after the barrier's phase was told to wait for more bytes.
  void Arrive(std::uint64_t* barrier, int expected_bytes);
  // True if the phase of that parity is over.
  bool HasPassed(const std::uint64_t* barrier, std::uint32_t parity);

  void BeginBulkCopy(void* shared, const void* global, int bytes, std::uint64_t* barrier);

  // --- Named barriers (PTX ISA, "barrier{.cta}") ---

  // The barrier's generation that the arrival belongs to.
  int ArriveNamed(int id, int num_threads);
  bool HasPassedNamed(int id, int generation) const { return named_[id].generation > generation; }

  // Completes some of the copies that are under way, at least one if `must_advance`; whether it
  // did.
  bool Advance(bool must_advance);
  // The block is over.
  void Finish() const;

 private:
  struct Barrier {
    int arrivals = 0;
    int pending = 0;
    std::int64_t pending_bytes = 0;
    std::uint32_t phase = 0;
  };
  struct BulkCopy {
    char* shared;
    const char* global;
    int bytes;
    const std::uint64_t* barrier;
  };
  struct NamedBarrier {
    int num_threads = 0;
    int arrived = 0;
    int generation = 0;
  };

  Barrier& BarrierAt(const std::uint64_t* barrier);
  static void CompleteIfDone(Barrier& barrier);
  void Complete(const BulkCopy& copy);

  const SharedMemory shared_;
  std::mt19937& random_;
  const FailFunction fail_;
  std::vector<char> async_view_;
  std::map<const std::uint64_t*, Barrier> barriers_;
  std::vector<BulkCopy> copies_;
  NamedBarrier named_[16];
};

}  // namespace attention::simt
