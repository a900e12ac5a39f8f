// Which CPUs a thread may run on.
#pragma once

#include <vector>

namespace attention {

// The CPUs that the calling thread may run on, ascending: just one after PinThisThread, so lists of
// CPUs are checked before. Empty when the system does not say.
std::vector<int> AvailableCpus();

// Keeps the calling thread on one CPU. False, and nothing changes, when the system refuses.
bool PinThisThread(int cpu);

}  // namespace attention
