#include "kernels/cpu/machine_ceilings.h"

#include <time.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <functional>

#include "kernels/cpu/huge_page_memory.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace attention::cpu {
namespace {

// Runs loop(iterations), which returns its FLOPs, on every thread for about `seconds`.
double FlopsPerSecond(ThreadPool& pool, double seconds, Clock clock,
                      const std::function<double(std::int64_t, float*)>& loop) {
  constexpr std::int64_t kIterations = 20000;  // about 40 us
  std::atomic<double> total{0};
  const double start = clock();
  const double end = WallSeconds() + seconds;
  pool.ParallelFor(pool.num_threads(), [&](std::int64_t, int) {
    double flops = 0;
    float sink = 0;
    while (WallSeconds() < end) flops += loop(kIterations, &sink);
    // The store keeps the loop from being removed.
    volatile float keep = sink;
    (void)keep;
    total.fetch_add(flops);
  });
  return total.load() / (clock() - start);
}

#if defined(__x86_64__)
__attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16"))) double BFloat16Loop(
    std::int64_t iterations, float* sink) {
  constexpr int kChains = 24;
  const __m512bh a = (__m512bh)_mm512_set1_epi32(0x3f7f3f7f);
  __m512 sum[kChains];
#pragma GCC unroll 24
  for (int i = 0; i < kChains; ++i) sum[i] = _mm512_set1_ps(static_cast<float>(i));
  for (std::int64_t n = 0; n < iterations; ++n) {
#pragma GCC unroll 24
    for (int i = 0; i < kChains; ++i) sum[i] = _mm512_dpbf16_ps(sum[i], a, a);
  }
  __m512 total = sum[0];
#pragma GCC unroll 24
  for (int i = 1; i < kChains; ++i) total = _mm512_add_ps(total, sum[i]);
  float lanes[16];
  _mm512_storeu_ps(lanes, total);
  *sink = lanes[0];
  return 4.0 * 16 * kChains * static_cast<double>(iterations);
}
#endif

}  // namespace

double WallSeconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double ProcessorSeconds() {
  timespec now;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

double MeasureMultiplyAdd(const KernelTable& kernels, ThreadPool& pool, double seconds,
                          Clock clock) {
  return FlopsPerSecond(pool, seconds, clock, kernels.multiply_add_loop);
}

double MeasureBFloat16Dot([[maybe_unused]] ThreadPool& pool, [[maybe_unused]] double seconds,
                          [[maybe_unused]] Clock clock) {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512bf16")) {
    return FlopsPerSecond(pool, seconds, clock, BFloat16Loop);
  }
#endif
  return 0;
}

double MeasureRead(const KernelTable& kernels, ThreadPool& pool, const void* data,
                   std::size_t bytes, Clock clock) {
  constexpr std::size_t kPiece = std::size_t{1} << 20;
  const std::int64_t pieces = static_cast<std::int64_t>(bytes / kPiece);
  std::atomic<float> sink{0};
  const double start = clock();
  // Every thread walks a stretch of its own, as decode does.
  const std::int64_t threads = pool.num_threads();
  pool.ParallelFor(threads, [&](std::int64_t index, int) {
    const std::int64_t begin = pieces * index / threads;
    const std::int64_t end = pieces * (index + 1) / threads;
    const char* from = static_cast<const char*>(data) + begin * kPiece;
    sink.store(kernels.read_loop(from, static_cast<std::size_t>(end - begin) * kPiece));
  });
  return static_cast<double>(pieces * kPiece) / (clock() - start);
}

DeviceCeilings MeasureCeilings(const KernelTable& kernels, ThreadPool& pool,
                               const CeilingOptions& options) {
  DeviceCeilings ceilings;
  HugePageBuffer buffer;
  const bool has_buffer = buffer.Reserve(options.read_bytes);
  if (has_buffer) std::memset(buffer.data(), 1, options.read_bytes);
  for (int i = 0; i < options.repetitions; ++i) {
    ceilings.flops_per_second = std::max(
        ceilings.flops_per_second, MeasureMultiplyAdd(kernels, pool, options.seconds_per_loop));
    ceilings.bf16_flops_per_second = std::max(ceilings.bf16_flops_per_second,
                                              MeasureBFloat16Dot(pool, options.seconds_per_loop));
    if (has_buffer) {
      ceilings.bytes_per_second = std::max(
          ceilings.bytes_per_second, MeasureRead(kernels, pool, buffer.data(), options.read_bytes));
    }
  }
  return ceilings;
}

}  // namespace attention::cpu
