#include "tests/benchmark/transport/other_work.h"

#include <unistd.h>

#include <algorithm>
#include <ctime>
#include <fstream>
#include <string>
#include <utility>

namespace attention::bench {

OtherWork::OtherWork(std::set<const ChildProcess*> servers)
    : servers_(std::move(servers)), begin_(Read()) {}

double OtherWork::Share() const {
  const Seconds end = Read();
  const double others = (end.busy - begin_.busy) - (end.ours - begin_.ours);
  return std::max(0.0, others / std::max(end.all - begin_.all, 1e-9));
}

OtherWork::Seconds OtherWork::Read() const {
  // "cpu user nice system idle iowait irq softirq steal", in ticks.
  constexpr int kNumStates = 8;
  constexpr int kIdle = 3, kIoWait = 4;
  Seconds seconds;
  std::ifstream file("/proc/stat");
  std::string name;
  file >> name;
  const double tick = 1.0 / static_cast<double>(sysconf(_SC_CLK_TCK));
  for (int i = 0; i < kNumStates; ++i) {
    double ticks = 0;
    file >> ticks;
    seconds.all += ticks * tick;
    if (i != kIdle && i != kIoWait) seconds.busy += ticks * tick;
  }
  timespec own = {};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &own);
  seconds.ours = static_cast<double>(own.tv_sec) + static_cast<double>(own.tv_nsec) * 1e-9;
  for (const ChildProcess* server : servers_) seconds.ours += server->Use().cpu_seconds;
  return seconds;
}

}  // namespace attention::bench
