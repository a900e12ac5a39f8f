// Options of a small, fast run against a FakeServer.
#pragma once

#include "client/loadgen/options.h"

namespace attention::loadgen {

inline Options SmallOptions() {
  Options options;
  options.targets = {"fake:1"};
  options.warmup = absl::ZeroDuration();
  options.requests = 10;
  options.shape.q_len = 3;
  options.shape.kv_len = 5;
  options.shape.num_q_heads = 4;
  options.shape.num_kv_heads = 2;
  options.shape.head_dim_qk = 8;
  options.shape.head_dim_v = 6;
  options.is_quiet = true;
  return options;
}

inline Options SmallSessionOptions(WorkloadKind workload) {
  Options options = SmallOptions();
  options.workload = workload;
  options.context = 7;
  options.layers = 2;
  if (workload == WorkloadKind::kDecode) options.shape.q_len = 1;
  return options;
}

}  // namespace attention::loadgen
