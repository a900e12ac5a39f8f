#include "server/base/process_memory.h"

#include <malloc.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <thread>

namespace attention::server {

void KeepFreedMemory() {
#ifdef __GLIBC__
  constexpr int kMmapThreshold = 1 << 30;
  constexpr int kNeverTrim = 2147483647;
  constexpr int kTopPad = 64 << 20;  // grow in steps that are worth the call
  mallopt(M_MMAP_THRESHOLD, kMmapThreshold);
  mallopt(M_TRIM_THRESHOLD, kNeverTrim);
  mallopt(M_TOP_PAD, kTopPad);
#endif
}

void LimitArenas(std::int64_t memory_bytes) {
#ifdef __GLIBC__
  constexpr std::int64_t kBytesOfAnArena = std::int64_t{256} << 20;
  const std::int64_t most = std::max<std::int64_t>(2, memory_bytes / kBytesOfAnArena);
  const std::int64_t usual = 8 * std::int64_t{std::thread::hardware_concurrency()};
  if (most < usual) mallopt(M_ARENA_MAX, static_cast<int>(most));
#endif
}

std::int64_t ResidentBytes() {
  std::int64_t all = 0;
  std::int64_t resident = 0;  // in pages
  std::ifstream("/proc/self/statm") >> all >> resident;
  return resident * sysconf(_SC_PAGESIZE);
}

bool FreedMemory::IsExcessive(const Sample& sample) {
  used_[static_cast<std::size_t>(next_)] = sample.used;
  next_ = (next_ + 1) % kNumSamples;
  // The bytes that lie in memory and are not allocated: those freed, and the process' own.
  const std::int64_t kept = sample.resident - sample.used;
  least_kept_ = std::min(least_kept_, kept);
  const std::int64_t freed = std::min(sample.free, kept - least_kept_);
  const std::int64_t needed = *std::max_element(used_.begin(), used_.end()) - sample.used;
  return freed - needed > keep_bytes_;
}

void FreedMemory::Tend() {
#ifdef __GLIBC__
  const struct mallinfo2 info = mallinfo2();
  if (!IsExcessive({static_cast<std::int64_t>(info.uordblks),
                    static_cast<std::int64_t>(info.fordblks), ResidentBytes()})) {
    return;
  }
  malloc_trim(/*pad=*/0);
  GivenBack(ResidentBytes() - static_cast<std::int64_t>(mallinfo2().uordblks));
#endif
}

bool FreedMemory::IsNearLimit(std::int64_t resident) {
  if (resident < memory_bytes_ / 4 * 3) {
    left_ = 0;
    return false;
  }
  return resident > left_ + memory_bytes_ / 32;
}

void FreedMemory::TendLimit() {
#ifdef __GLIBC__
  if (!IsNearLimit(ResidentBytes())) return;
  malloc_trim(/*pad=*/0);
  Left(ResidentBytes());
#endif
}

}  // namespace attention::server
