// The machine of the load generator: a figure without its machine says little.
#pragma once

#include <string>

namespace attention::loadgen {

struct MachineInfo {
  std::string cpu;  // model name, "unknown" where the system does not tell
  int cores = 0;    // that this process may use
  double memory_gib = 0;
  std::string system;    // "Linux 6.1.0 x86_64"
  std::string compiler;  // of this program
};

MachineInfo ReadMachineInfo();

}  // namespace attention::loadgen
