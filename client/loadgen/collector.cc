#include "client/loadgen/collector.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "attention/client/errors.h"

namespace attention::loadgen {
namespace {

void Tally(const absl::Status& status, const std::string& prefix, ErrorTallies& errors) {
  const std::string reason = absl::StrCat(prefix, client::ErrorReason(status).value_or("(none)"));
  ErrorTally& tally = errors[{absl::StatusCodeToString(status.code()), reason}];
  if (tally.count++ == 0) tally.example = std::string(status.message());
}

}  // namespace

bool IsRefusal(const absl::Status& status) {
  return absl::IsResourceExhausted(status) &&
         (client::ErrorReason(status).has_value() || client::RetryDelay(status).has_value());
}

void Collector::AddSending(const RequestTimes& times) {
  const absl::Duration slip = times.sent - times.scheduled;
  totals_.slip.Add(slip);
  if (times.is_limited) {
    ++totals_.num_limited;
  } else {
    totals_.send_lag.Add(slip);
  }
  totals_.last_answer = std::max(totals_.last_answer, times.answered);
}

void Collector::AddOk(const RequestTimes& times, const client::Timing& timing, const Work& work,
                      bool is_recorded) {
  const absl::Duration latency = times.answered - times.scheduled;
  absl::MutexLock lock(&mutex_);
  ++interval_.num_ok;
  interval_.latency.Add(latency);
  if (!is_recorded) return;
  ++totals_.num_ok;
  totals_.work.Add(work);
  totals_.latency.Add(latency);
  totals_.queue.Add(timing.queue);
  totals_.batch_formation.Add(timing.batch_formation);
  totals_.compute.Add(timing.compute);
  totals_.outside.Add(times.answered - times.sent - timing.queue - timing.batch_formation -
                      timing.compute);
  totals_.batch_size.Add(static_cast<std::int64_t>(timing.batch_size));
  AddSending(times);
}

void Collector::AddFailure(const RequestTimes& times, const absl::Status& status,
                           bool is_recorded) {
  absl::MutexLock lock(&mutex_);
  if (!is_recorded) return;
  if (IsRefusal(status)) {
    ++totals_.num_refused;
    totals_.refusal.Add(times.answered - times.sent);
  } else {
    ++totals_.num_errors;
  }
  Tally(status, "", totals_.errors);
  AddSending(times);
}

void Collector::AddSetupFailure(const absl::Status& status) {
  absl::MutexLock lock(&mutex_);
  ++totals_.num_errors;
  Tally(status, "session setup: ", totals_.errors);
}

void Collector::AddAbandoned() {
  absl::MutexLock lock(&mutex_);
  ++totals_.num_abandoned;
}

Totals Collector::totals() const {
  absl::MutexLock lock(&mutex_);
  return totals_;
}

Interval Collector::TakeInterval() {
  absl::MutexLock lock(&mutex_);
  Interval interval = std::exchange(interval_, Interval());
  interval.num_errors = totals_.num_errors;
  interval.num_refused = totals_.num_refused;
  return interval;
}

}  // namespace attention::loadgen
