#include "client/loadgen/machine.h"

#include <sys/utsname.h>
#include <unistd.h>

#include <fstream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "client/loadgen/cpu_meter.h"

namespace attention::loadgen {
namespace {

std::string CpuModel() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (!absl::StartsWith(line, "model name")) continue;
    const std::pair<std::string, std::string> parts = absl::StrSplit(line, absl::MaxSplits(':', 1));
    return std::string(absl::StripAsciiWhitespace(parts.second));
  }
  return "unknown";
}

}  // namespace

MachineInfo ReadMachineInfo() {
  MachineInfo info;
  info.cpu = CpuModel();
  info.cores = CpuMeter().Use().cores;
  const double bytes =
      static_cast<double>(sysconf(_SC_PHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGE_SIZE));
  info.memory_gib = bytes / (1 << 30);
  utsname system = {};
  if (uname(&system) == 0) {
    info.system = absl::StrCat(system.sysname, " ", system.release, " ", system.machine);
  }
#if defined(__clang__)
  info.compiler = absl::StrCat("clang ", __clang_major__, ".", __clang_minor__);
#elif defined(__GNUC__)
  info.compiler = absl::StrCat("gcc ", __GNUC__, ".", __GNUC_MINOR__);
#endif
  return info;
}

}  // namespace attention::loadgen
