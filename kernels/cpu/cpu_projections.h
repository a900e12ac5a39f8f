// Projections on the processor's cores, by oneDNN (block_matmul.h) on the backend's own threads.
//
// Weights and arithmetic are float32 whatever the dtypes of weights and rows: oneDNN 2.6 has no
// float16 on CPUs, and bfloat16 only with AVX-512.
#pragma once

#include <memory>

#include "kernels/api/projection.h"
#include "kernels/base/thread_pool.h"

namespace attention::cpu {

// `pool` must outlive it, and is used by the thread that calls Project.
std::unique_ptr<ProjectionBackend> MakeCpuProjections(ThreadPool& pool);

}  // namespace attention::cpu
