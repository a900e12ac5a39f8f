#include "server/observe/log_sampler.h"

#include <utility>

namespace attention::server {

bool LogSampler::Admit(const std::string& kind) {
  MutexLock lock(&mutex_);
  return ++counts_[kind] <= max_per_period_;
}

std::vector<LogSampler::Suppressed> LogSampler::EndPeriod() {
  std::map<std::string, std::int64_t> counts;
  {
    MutexLock lock(&mutex_);
    counts = std::exchange(counts_, {});
  }
  std::vector<Suppressed> suppressed;
  for (const auto& [kind, count] : counts) {
    if (count > max_per_period_) suppressed.push_back({kind, count - max_per_period_});
  }
  return suppressed;
}

}  // namespace attention::server
