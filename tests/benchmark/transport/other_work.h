// The share of the machine that went to neither this benchmark nor its servers.
#pragma once

#include <set>

#include "tests/benchmark/transport/child_process.h"

namespace attention::bench {

class OtherWork {
 public:
  // Counts from here. The servers must outlive it.
  explicit OtherWork(std::set<const ChildProcess*> servers);

  // The share of the time of all processors, 0 to 1.
  double Share() const;

 private:
  struct Seconds {
    double all = 0;
    double busy = 0;
    double ours = 0;
  };
  Seconds Read() const;

  const std::set<const ChildProcess*> servers_;
  const Seconds begin_;
};

}  // namespace attention::bench
