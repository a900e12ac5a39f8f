#include "tests/benchmark/transport/process_memory.h"

#include <malloc.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>

namespace attention::bench {
namespace {

constexpr int kMmapThreshold = 1 << 30;
constexpr int kNeverTrim = 2147483647;
constexpr int kTopPad = 64 << 20;
// Less than the threshold above, so that it comes from the heap.
constexpr std::size_t kReservedBytes = std::size_t{1} << 29;
constexpr std::uintptr_t kHugePageBytes = std::uintptr_t{2} << 20;

bool KeepFreedMemory() {
  return mallopt(M_MMAP_THRESHOLD, kMmapThreshold) == 1 &&
         mallopt(M_TRIM_THRESHOLD, kNeverTrim) == 1 && mallopt(M_TOP_PAD, kTopPad) == 1;
}

// Grows the one heap at once, so that it is one mapping that can be advised.
bool ReserveHugeHeap() {
  const auto begin = reinterpret_cast<std::uintptr_t>(sbrk(0));
  void* block = std::malloc(kReservedBytes);
  if (block == nullptr) return false;
  const auto end = reinterpret_cast<std::uintptr_t>(sbrk(0));
  std::free(block);
  if (end - begin < kReservedBytes) return false;
  const std::uintptr_t first = (begin + kHugePageBytes - 1) & ~(kHugePageBytes - 1);
  return madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE) == 0;
}

}  // namespace

bool SetUpMemory(Memory memory) {
  if (memory == Memory::kDefault) return true;
  bool is_set = KeepFreedMemory();
  if (memory == Memory::kReserved) {
    is_set = mallopt(M_ARENA_MAX, 1) == 1 && ReserveHugeHeap() && is_set;
  }
  return is_set;
}

}  // namespace attention::bench
