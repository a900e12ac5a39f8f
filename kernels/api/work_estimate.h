// Arithmetic of a computation, from lengths alone: what the scheduler budgets, what Explain answers
// and what benchmarks divide by.
#pragma once

#include "kernels/api/attention_params.h"

namespace attention {

struct WorkEstimate {
  // 2 * (head_dim_qk + head_dim_v) for each visible (query, key) pair and query head. Masked-out
  // pairs of a boolean mask or bias count as visible.
  double flops = 0;
  double kv_bytes = 0;  // keys and values that some query sees, read once
  double io_bytes = 0;  // q and o

  WorkEstimate& operator+=(const WorkEstimate& other) {
    flops += other.flops;
    kv_bytes += other.kv_bytes;
    io_bytes += other.io_bytes;
    return *this;
  }
};

WorkEstimate EstimateWork(const AttentionTask& task);

// Sustained rates of one device, measured on it.
struct DeviceCeilings {
  double flops_per_second = 0;       // fused multiply-add, float32
  double bf16_flops_per_second = 0;  // bfloat16 products accumulated in float32; 0: no such unit
  double bytes_per_second = 0;       // memory read
};

// The least time that the device could need: the larger of its arithmetic and its memory time.
double RooflineSeconds(const WorkEstimate& work, const DeviceCeilings& ceilings);

}  // namespace attention
