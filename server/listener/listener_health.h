// The health of the listeners, as the server's own calls through them have shown it.
//
// A listener counts as lost after several calls in a row that were not answered, so that a machine
// that is merely busy is neither taken out of service nor, later still, restarted.
//
// Thread-safety: all methods.
#pragma once

#include <map>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "server/base/metrics.h"
#include "server/base/mutex.h"

namespace attention::server {

class ListenerHealth {
 public:
  static constexpr int kMissesUntilNotReady = 3;
  static constexpr int kMissesUntilNotAlive = 15;

  // Counts into `metrics`, which must outlive the object.
  explicit ListenerHealth(ServerMetrics& metrics) : metrics_(metrics) {}

  // One call through the listener.
  void Record(const std::string& address, const absl::Status& outcome);

  // The first listener that is lost, with why; empty: none.
  std::string WhyNotReady() const { return Lost(kMissesUntilNotReady); }
  std::string WhyNotAlive() const { return Lost(kMissesUntilNotAlive); }

 private:
  struct State {
    int misses = 0;  // since the last answer
    absl::Status latest;
  };

  std::string Lost(int misses) const;

  ServerMetrics& metrics_;
  mutable Mutex mutex_;
  std::map<std::string, State> states_ ABSL_GUARDED_BY(mutex_);  // by address
};

}  // namespace attention::server
