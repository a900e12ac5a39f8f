#include "server/listener/listener_health.h"

#include "absl/strings/str_cat.h"

namespace attention::server {

void ListenerHealth::Record(const std::string& address, const absl::Status& outcome) {
  (outcome.ok() ? metrics_.probes_answered : metrics_.probes_missed).Add();
  MutexLock lock(&mutex_);
  State& state = states_[address];
  state.misses = outcome.ok() ? 0 : state.misses + 1;
  state.latest = outcome;
}

std::string ListenerHealth::Lost(int misses) const {
  MutexLock lock(&mutex_);
  for (const auto& [address, state] : states_) {
    if (state.misses < misses) continue;
    return absl::StrCat("the server's own calls through ", address, " were not answered, ",
                        state.misses, " in a row: ", state.latest.message());
  }
  return "";
}

}  // namespace attention::server
