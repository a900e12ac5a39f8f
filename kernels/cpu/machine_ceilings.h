// The processor's best rates, measured: the numbers that kernels are judged against.
#pragma once

#include "kernels/api/work_estimate.h"
#include "kernels/base/thread_pool.h"
#include "kernels/cpu/attention_kernel.h"

namespace attention::cpu {

struct CeilingOptions {
  double seconds_per_loop = 0.05;  // of each of the repetitions
  int repetitions = 2;             // the best counts
  // Far above a core's share of the last-level cache; the whole buffer is read by all threads
  // together.
  std::size_t read_bytes = std::size_t{256} << 20;
};

// All threads of the pool at once. Blocks for about 0.3 s with the defaults.
DeviceCeilings MeasureCeilings(const KernelTable& kernels, ThreadPool& pool,
                               const CeilingOptions& options = {});

// Seconds since some start. The processor time of all threads tells what the kernels cost on a
// machine whose cores are shared with other work; a rate taken with it is that of one thread.
using Clock = double (*)();
double WallSeconds();
double ProcessorSeconds();

// The parts. Zero bf16 FLOP/s when the processor has no bfloat16 dot product.
double MeasureMultiplyAdd(const KernelTable& kernels, ThreadPool& pool, double seconds,
                          Clock clock = WallSeconds);
double MeasureBFloat16Dot(ThreadPool& pool, double seconds, Clock clock = WallSeconds);
double MeasureRead(const KernelTable& kernels, ThreadPool& pool, const void* data,
                   std::size_t bytes, Clock clock = WallSeconds);

}  // namespace attention::cpu
