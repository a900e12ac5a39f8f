#include "tests/simt/async_unit.h"

#include <cstring>
#include <utility>

namespace attention::simt {
namespace {

// The content of an mbarrier here: hardware's format is its own.
constexpr std::uint64_t kBarrierMark = 0x62617272'69657221u;

// The bytes that an mbarrier can count (PTX ISA, "Contents of the mbarrier object": 2^20 - 1).
constexpr std::int64_t kMaxPendingBytes = (1 << 20) - 1;

bool IsAligned(const void* address) { return reinterpret_cast<std::uintptr_t>(address) % 16 == 0; }

}  // namespace

AsyncUnit::AsyncUnit(SharedMemory shared, std::mt19937& random, FailFunction fail)
    : shared_(shared),
      random_(random),
      fail_(std::move(fail)),
      async_view_(shared.bytes, static_cast<char>(0xff)) {}

void AsyncUnit::JoinProxies() { std::memcpy(async_view_.data(), shared_.data, shared_.bytes); }

AsyncUnit::Barrier& AsyncUnit::BarrierAt(const std::uint64_t* barrier) {
  const auto found = barriers_.find(barrier);
  if (found == barriers_.end() || *barrier != kBarrierMark) {
    fail_("what is used as an mbarrier was not initialised, or was overwritten");
  }
  return found->second;
}

void AsyncUnit::InitBarrier(std::uint64_t* barrier, int arrivals) {
  if (!shared_.Contains(barrier, sizeof(*barrier)) ||
      reinterpret_cast<std::uintptr_t>(barrier) % alignof(std::uint64_t) != 0) {
    fail_("an mbarrier does not lie in shared memory, aligned to 8 bytes");
  }
  if (arrivals < 1) fail_("an mbarrier counts no arrivals");
  *barrier = kBarrierMark;
  if (!barriers_.try_emplace(barrier, Barrier{arrivals, arrivals, 0, 0}).second) {
    fail_("an mbarrier is initialised twice");
  }
}

void AsyncUnit::CompleteIfDone(Barrier& barrier) {
  if (barrier.pending > 0 || barrier.pending_bytes != 0) return;
  ++barrier.phase;
  barrier.pending = barrier.arrivals;
}

void AsyncUnit::Arrive(std::uint64_t* address, int expected_bytes) {
  Barrier& barrier = BarrierAt(address);
  if (barrier.pending == 0) fail_("more threads arrive at an mbarrier than it counts");
  barrier.pending_bytes += expected_bytes;
  if (barrier.pending_bytes > kMaxPendingBytes) fail_("an mbarrier waits for too many bytes");
  --barrier.pending;
  CompleteIfDone(barrier);
}

bool AsyncUnit::HasPassed(const std::uint64_t* barrier, std::uint32_t parity) {
  return (BarrierAt(barrier).phase & 1u) != parity;
}

void AsyncUnit::BeginBulkCopy(void* shared, const void* global, int bytes, std::uint64_t* barrier) {
  BarrierAt(barrier);
  if (bytes <= 0 || bytes % 16 != 0 || !IsAligned(shared) || !IsAligned(global)) {
    fail_("a bulk copy is not of 16-byte pieces, aligned on both sides");
  }
  if (!shared_.Contains(shared, bytes)) fail_("a bulk copy leaves shared memory");
  auto* to = static_cast<char*>(shared);
  std::memset(to, 0xff, bytes);
  std::memset(async_view_.data() + (to - shared_.data), 0xff, bytes);
  copies_.push_back({to, static_cast<const char*>(global), bytes, barrier});
}

void AsyncUnit::Complete(const BulkCopy& copy) {
  std::memcpy(copy.shared, copy.global, copy.bytes);
  std::memcpy(async_view_.data() + (copy.shared - shared_.data), copy.global, copy.bytes);
  Barrier& barrier = BarrierAt(copy.barrier);
  barrier.pending_bytes -= copy.bytes;
  CompleteIfDone(barrier);
}

int AsyncUnit::ArriveNamed(int id, int num_threads) {
  if (id < 1 || id > 15) fail_("a named barrier's id is outside [1, 15]");
  NamedBarrier& barrier = named_[id];
  if (num_threads % 32 != 0) fail_("a named barrier counts parts of warps");
  if (barrier.arrived > 0 && barrier.num_threads != num_threads) {
    fail_("threads disagree about how many meet at a named barrier");
  }
  const int generation = barrier.generation;
  barrier.num_threads = num_threads;
  if (++barrier.arrived == num_threads) {
    barrier.arrived = 0;
    ++barrier.generation;
  }
  return generation;
}

bool AsyncUnit::Advance(bool must_advance) {
  bool has_advanced = false;
  while (!copies_.empty() && (random_() % 2 == 0 || (must_advance && !has_advanced))) {
    std::swap(copies_[random_() % copies_.size()], copies_.back());
    const BulkCopy copy = copies_.back();
    copies_.pop_back();
    Complete(copy);
    has_advanced = true;
  }
  return has_advanced;
}

void AsyncUnit::Finish() const {
  if (!copies_.empty()) fail_("the block ends with bulk copies under way");
  for (const auto& [address, barrier] : barriers_) {
    if (barrier.pending_bytes != 0) fail_("the block ends with bytes that an mbarrier waits for");
  }
  for (const NamedBarrier& barrier : named_) {
    if (barrier.arrived > 0) fail_("the block ends with threads at a named barrier");
  }
}

}  // namespace attention::simt
