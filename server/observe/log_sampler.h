// Samples a log: the first few lines of each kind in a period are written, the rest are counted.
//
// Thread-safety: all methods.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "server/base/mutex.h"

namespace attention::server {

class LogSampler {
 public:
  explicit LogSampler(int max_per_period) : max_per_period_(max_per_period) {}

  // True: this one is logged. There are as many kinds as the caller makes, so they must not be
  // of a client's choice.
  bool Admit(const std::string& kind);

  struct Suppressed {
    std::string kind;
    std::int64_t count = 0;
  };
  // Begins the next period. Returns, in the order of kinds, what the last one kept out of the log.
  std::vector<Suppressed> EndPeriod();

 private:
  const int max_per_period_;
  Mutex mutex_;
  std::map<std::string, std::int64_t> counts_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace attention::server
