// Gathers what happened to each request. Thread-safe: answers arrive on the SDK's threads.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "attention/client/attention.h"
#include "client/loadgen/attention_case.h"
#include "client/loadgen/histogram.h"

namespace attention::loadgen {

// One request's times, by the driver's clock.
struct RequestTimes {
  // When it should have been sent. Latency counts from here, so that a server which stalls is
  // charged for the requests that queued up in front of it meanwhile. In a closed loop, `sent`.
  absl::Duration scheduled;
  absl::Duration sent;
  absl::Duration answered;
  // It was late because no user was free, or because of others that were: the server's doing (or
  // the limit's), not the sender's.
  bool is_limited = false;
};

struct ErrorTally {
  std::int64_t count = 0;
  std::string example;  // the first message
};
// By canonical code ("UNAVAILABLE") and reason ("QUEUE_FULL", "(none)").
using ErrorTallies = std::map<std::pair<std::string, std::string>, ErrorTally>;

struct Totals {
  std::int64_t num_ok = 0;
  std::int64_t num_refused = 0;    // RESOURCE_EXHAUSTED by the server's own limits
  std::int64_t num_errors = 0;     // everything else that failed, setup included
  std::int64_t num_abandoned = 0;  // cancelled by the user's interrupt
  ErrorTallies errors;             // refusals included
  Work work;  // of the OK ones, as all histograms but those of refusal and sending

  // Nanoseconds.
  Histogram latency;  // scheduled to answered
  Histogram queue;    // the server's own account ...
  Histogram batch_formation;
  Histogram compute;
  Histogram outside;             // ... and what is left of sent to answered: network, SDK, encoding
  Histogram refusal;             // of the refused ones: sent to answered
  Histogram slip;                // scheduled to sent
  Histogram send_lag;            // the same where nothing but the sender was to blame
  Histogram batch_size;          // requests in the batch
  std::int64_t num_limited = 0;  // requests sent late for want of a user
  absl::Duration last_answer;

  std::int64_t num_answered() const { return num_ok + num_refused + num_errors; }
};

// The answers since the last look, warm-up included; failures since the warm-up.
struct Interval {
  std::int64_t num_ok = 0;
  Histogram latency;
  std::int64_t num_errors = 0;
  std::int64_t num_refused = 0;
};

class Collector {
 public:
  // An answer. Only recorded requests enter the totals.
  void AddOk(const RequestTimes& times, const client::Timing& timing, const Work& work,
             bool is_recorded);
  void AddFailure(const RequestTimes& times, const absl::Status& status, bool is_recorded);
  // A session that could not be made or filled.
  void AddSetupFailure(const absl::Status& status);
  void AddAbandoned();

  Totals totals() const;
  Interval TakeInterval();

 private:
  void AddSending(const RequestTimes& times) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  mutable absl::Mutex mutex_;
  Totals totals_ ABSL_GUARDED_BY(mutex_);
  Interval interval_ ABSL_GUARDED_BY(mutex_);
};

// RESOURCE_EXHAUSTED with a reason or a retry delay. Without either it is no answer to load, but a
// message beyond a size limit.
bool IsRefusal(const absl::Status& status);

}  // namespace attention::loadgen
