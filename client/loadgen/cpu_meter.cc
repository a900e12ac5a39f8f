#include "client/loadgen/cpu_meter.h"

#include <sched.h>
#include <sys/resource.h>

#include <thread>

#include "client/loadgen/clock.h"

namespace attention::loadgen {
namespace {

absl::Duration ProcessCpu() {
  rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  return absl::DurationFromTimeval(usage.ru_utime) + absl::DurationFromTimeval(usage.ru_stime);
}

int AvailableCores() {
#ifdef __linux__
  cpu_set_t cores;
  if (sched_getaffinity(0, sizeof(cores), &cores) == 0) return CPU_COUNT(&cores);
#endif
  return static_cast<int>(std::thread::hardware_concurrency());
}

}  // namespace

void CpuMeter::Start() {
  cpu_at_start_ = ProcessCpu();
  time_at_start_ = SteadyClock().Now();
}

CpuUse CpuMeter::Use() const {
  CpuUse use{.cores = AvailableCores()};
  const absl::Duration time = SteadyClock().Now() - time_at_start_;
  if (time_at_start_ == absl::ZeroDuration() || time <= absl::ZeroDuration()) return use;
  use.cores_used = absl::FDivDuration(ProcessCpu() - cpu_at_start_, time);
  return use;
}

}  // namespace attention::loadgen
