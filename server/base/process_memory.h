// The C allocator's settings for a process that receives large messages, and what it holds.
#pragma once

#include <array>
#include <cstdint>

namespace attention::server {

// Keeps freed memory mapped. gRPC allocates what it receives; by default glibc maps every block of
// more than 32 MiB anew and gives the top of the heap back, so a message of 16 MiB costs hundreds
// of page faults (measured: 769 a call, and 0 with this; half the throughput). FreedMemory gives
// back what a burst leaves. Call first in main, before there are threads. Does nothing without
// glibc.
void KeepFreedMemory();

// Fewer arenas where memory is scarce: each keeps what was freed in it. Call before there are many
// threads. Does nothing without glibc.
void LimitArenas(std::int64_t memory_bytes);

// Bytes of this process that lie in the machine's memory; 0 when the system does not say.
std::int64_t ResidentBytes();

// Gives memory back that was freed and has not been needed again for some seconds.
class FreedMemory {
 public:
  struct Sample {
    std::int64_t used = 0;      // allocated
    std::int64_t free = 0;      // the allocator's, touched or not
    std::int64_t resident = 0;  // of the process
  };

  // Keeps about `keep_bytes`, so that the next large messages find warm memory. The process may
  // have `memory_bytes` in all.
  FreedMemory(std::int64_t keep_bytes, std::int64_t memory_bytes)
      : keep_bytes_(keep_bytes), memory_bytes_(memory_bytes) {}

  // To be called once a second.
  void Tend();
  // To be called many times a second: near the limit all is given back at once, needed soon or not.
  void TendLimit();

  // Says if much is kept that the last samples did not need, and lies in memory. For tests.
  bool IsExcessive(const Sample& sample);
  // Says if so much is resident that what was freed must go, and more than was left the last time.
  // For tests.
  bool IsNearLimit(std::int64_t resident);
  // After giving back near the limit: what is left.
  void Left(std::int64_t resident) { left_ = resident; }
  // After giving back: what lies in memory without being allocated.
  void GivenBack(std::int64_t kept) { least_kept_ = kept; }

 private:
  static constexpr int kNumSamples = 3;

  const std::int64_t keep_bytes_;
  const std::int64_t memory_bytes_;
  std::int64_t left_ = 0;  // resident when memory was last given back near the limit
  std::array<std::int64_t, kNumSamples> used_{};  // of the last samples
  int next_ = 0;
  // The least that lay in memory without being allocated since memory was last given back, or 0.
  // The allocator counts as free what was given back and what it never touched, too; this tells.
  std::int64_t least_kept_ = 0;
};

}  // namespace attention::server
