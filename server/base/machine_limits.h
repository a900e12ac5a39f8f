// The memory and processor time that this process may use: what the machine has, or less where a
// control group of a container, a pod or a service says so.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace attention::server {

struct MachineLimits {
  std::int64_t memory_bytes = 0;
  std::string memory_source;  // "the machine's memory", or the file that says less
  // Processors' worth of time, where it is limited; 1.5 is one and a half.
  std::optional<double> cpus;
  std::string cpu_source;
};

// The least of the machine's memory and every limit (memory.max, memory.high,
// memory.limit_in_bytes) and quota (cpu.max, cpu.cfs_quota_us) of the control groups that this
// process is in, from its own up to the topmost that can be seen, of versions 1 and 2. What cannot
// be read limits nothing. `root` is where proc and sys are looked for: "/" but for tests.
MachineLimits ReadMachineLimits(const std::string& root = "/");

// Threads that can run at the same time: `num_cpus`, or fewer where the quota is less, rounded up.
int UsableCpus(const MachineLimits& limits, int num_cpus);

}  // namespace attention::server
