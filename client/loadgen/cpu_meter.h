// How much processor this process used: a load generator that has none left measures itself.
#pragma once

#include "absl/time/time.h"

namespace attention::loadgen {

struct CpuUse {
  double cores_used = 0;  // mean over the time measured
  int cores = 0;          // that the process may run on
  double share() const { return cores == 0 ? 0 : cores_used / cores; }
};

// Not thread-safe.
class CpuMeter {
 public:
  // Measures from now on.
  void Start();
  // Since Start; nothing before it.
  CpuUse Use() const;

 private:
  absl::Duration cpu_at_start_;
  absl::Duration time_at_start_;
};

}  // namespace attention::loadgen
