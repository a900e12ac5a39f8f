// Which CPUs share memory, and how they are divided among workers.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace attention {

using CpuList = std::vector<int>;

// Parses a list of CPUs as Linux writes it, "0-3,8,10-11"; empty when the text is no such list.
CpuList ParseCpuList(std::string_view text);

// The available CPUs (AvailableCpus) of each NUMA node that has any, by node. One node with all of
// them when the system does not say. `sysfs`: for tests.
std::vector<CpuList> NumaNodes(const std::string& sysfs = "/sys/devices/system/node");

// Divides the CPUs of `nodes` into `num_groups` lists, 1 to the number of CPUs, as equal as can be.
// With at least as many groups as nodes no list crosses a node; with fewer, whole nodes share one.
std::vector<CpuList> DivideCpus(const std::vector<CpuList>& nodes, int num_groups);

}  // namespace attention
