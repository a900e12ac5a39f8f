#include "kernels/base/cpu_affinity.h"

#include <sched.h>

#include <memory>

namespace attention {
namespace {

// A cpu_set_t that is not allocated for a number of CPUs holds 1024.
constexpr int kMaxCpus = 8192;

struct FreeSet {
  void operator()(cpu_set_t* set) const { CPU_FREE(set); }
};
using CpuSet = std::unique_ptr<cpu_set_t, FreeSet>;

CpuSet MakeSet() {
  CpuSet set(CPU_ALLOC(kMaxCpus));
  if (set != nullptr) CPU_ZERO_S(CPU_ALLOC_SIZE(kMaxCpus), set.get());
  return set;
}

}  // namespace

std::vector<int> AvailableCpus() {
  const std::size_t bytes = CPU_ALLOC_SIZE(kMaxCpus);
  const CpuSet set = MakeSet();
  std::vector<int> cpus;
  if (set == nullptr || sched_getaffinity(0, bytes, set.get()) != 0) return cpus;
  for (int cpu = 0; cpu < kMaxCpus; ++cpu) {
    if (CPU_ISSET_S(cpu, bytes, set.get())) cpus.push_back(cpu);
  }
  return cpus;
}

bool PinThisThread(int cpu) {
  const std::size_t bytes = CPU_ALLOC_SIZE(kMaxCpus);
  const CpuSet set = MakeSet();
  if (set == nullptr || cpu < 0 || cpu >= kMaxCpus) return false;
  CPU_SET_S(cpu, bytes, set.get());
  return sched_setaffinity(0, bytes, set.get()) == 0;
}

}  // namespace attention
