// Which CPUs a thread may run on.
#pragma once

#include <vector>

namespace attention {

// The CPUs that the calling thread may run on, ascending; empty when the system does not say. After
// PinThisThread there is just one: compare lists of CPUs with these before.
std::vector<int> AvailableCpus();

// Keeps the calling thread on one CPU. False, and nothing changes, when the system refuses.
bool PinThisThread(int cpu);

}  // namespace attention
