// The primitives of kernels/cuda/kernels/intrinsics/hopper.h for code that block.h executes.
#pragma once

#include <cstdint>

#include "tests/simt/primitives.h"

namespace attention::cuda {

namespace simt_primitives {

void MultiplyWarpgroup(const simt::WgmmaCall& call);

}  // namespace simt_primitives

inline std::uint32_t SharedAddress(const void* shared) {
  return simt::kSharedBase + static_cast<std::uint32_t>(static_cast<const char*>(shared) -
                                                        simt::Current().async().shared().data);
}

template <int kRegisters>
void RaiseRegisters() {}
template <int kRegisters>
void LowerRegisters() {}

inline void InitBarrier(std::uint64_t* barrier, int arrivals) {
  simt::Current().async().InitBarrier(barrier, arrivals);
}
inline void FenceBarrierInit() {}
inline void ArriveAtBarrier(std::uint64_t* barrier) {
  simt::Current().async().Arrive(barrier, /*expected_bytes=*/0);
}
inline void ArriveExpectingBytes(std::uint64_t* barrier, int bytes) {
  simt::Current().async().Arrive(barrier, bytes);
}
inline void WaitForBarrier(std::uint64_t* barrier, std::uint32_t parity) {
  simt::AsyncUnit& async = simt::Current().async();
  simt::Current().WaitUntil("mbarrier",
                            [&async, barrier, parity] { return async.HasPassed(barrier, parity); });
}
inline void CopyBulk(void* shared, const void* global, int bytes, std::uint64_t* barrier) {
  simt::Current().async().BeginBulkCopy(shared, global, bytes, barrier);
}
inline void FenceAsyncProxy() { simt::Current().async().JoinProxies(); }

inline void ArriveNamed(int id, int num_threads) {
  simt::Current().async().ArriveNamed(id, num_threads);
}
inline void SyncNamed(int id, int num_threads) {
  simt::AsyncUnit& async = simt::Current().async();
  const int generation = async.ArriveNamed(id, num_threads);
  simt::Current().WaitUntil(
      "named barrier", [&async, id, generation] { return async.HasPassedNamed(id, generation); });
}

inline int WarpOfGroup() {
  return simt::Current().index() % simt::kWarpgroupThreads / simt::kWarpThreads;
}
inline void FenceWgmma() { simt::Current().wgmma().Fence(WarpOfGroup()); }
inline void CommitWgmma() {
  simt::Thread& thread = simt::Current();
  thread.Meet({"wgmma.commit_group", nullptr}, [&thread](void* const(&)[simt::kWarpThreads]) {
    thread.wgmma().Commit(WarpOfGroup());
  });
}
template <int kNewest>
void WaitWgmma() {
  simt::Thread& thread = simt::Current();
  thread.Pause();
  thread.Meet({"wgmma.wait_group", nullptr}, [&thread](void* const(&)[simt::kWarpThreads]) {
    thread.wgmma().Wait(WarpOfGroup(), kNewest);
  });
}

template <typename T, int kBlocks>
void PinRegisters(T (&)[kBlocks][4]) {}

inline std::uint32_t Computed(std::uint32_t value) { return value; }

template <DType kType, int kBlocks>
void MultiplyShared(float (&d)[kBlocks][4], std::uint64_t a, std::uint64_t b, bool accumulates) {
  static_assert(kBlocks == 8 || kBlocks == 16);
  simt_primitives::MultiplyWarpgroup({.dtype = kType,
                                      .num_blocks = kBlocks,
                                      .d = &d[0][0],
                                      .accumulates = accumulates,
                                      .a_descriptor = a,
                                      .b_descriptor = b});
}

template <DType kType, int kFirst, int kCount, int kBlocks>
void MultiplyRegisters(float (&d)[kBlocks][4], const std::uint32_t (&a)[4], std::uint64_t b) {
  static_assert((kCount == 8 || kCount == 16) && kFirst + kCount <= kBlocks);
  simt_primitives::MultiplyWarpgroup({.dtype = kType,
                                      .num_blocks = kCount,
                                      .d = &d[kFirst][0],
                                      .accumulates = true,
                                      .a = a,
                                      .b_descriptor = b,
                                      .is_b_transposed = true});
}

}  // namespace attention::cuda
