#include "client/loadgen/tickets.h"

#include <algorithm>
#include <limits>

namespace attention::loadgen {
namespace {

// A closed loop never asks its schedule; it gets one of any rate.
double RateOf(const Options& options) { return options.mode == LoopMode::kOpen ? options.rate : 1; }

}  // namespace

Tickets::Tickets(const Options& options, absl::Duration start)
    : start_(start),
      record_begin_(start + options.warmup),
      end_(options.duration.has_value() ? record_begin_ + *options.duration
                                        : absl::InfiniteDuration()),
      schedule_(options.arrivals, RateOf(options), options.seed),
      recorded_left_(options.requests.value_or(std::numeric_limits<std::int64_t>::max())) {}

bool Tickets::Admit(const Ticket& ticket) {
  if (!ticket.is_recorded) return true;
  if (recorded_left_ == 0) {
    is_over_ = true;
    return false;
  }
  --recorded_left_;
  return true;
}

bool Tickets::has_used_up_requests() {
  absl::MutexLock lock(&mutex_);
  return recorded_left_ == 0;
}

std::optional<Ticket> Tickets::TakeNow(absl::Duration now) {
  absl::MutexLock lock(&mutex_);
  if (is_over_ || now >= end_) return std::nullopt;
  const Ticket ticket{.scheduled = now, .is_recorded = now >= record_begin_};
  return Admit(ticket) ? std::optional(ticket) : std::nullopt;
}

std::optional<Ticket> Tickets::TakeNext(absl::Duration now) {
  absl::MutexLock lock(&mutex_);
  if (is_over_) return std::nullopt;
  const absl::Duration scheduled = start_ + schedule_.Next();
  if (scheduled >= end_) {
    is_over_ = true;
    return std::nullopt;
  }
  const Ticket ticket{.scheduled = scheduled,
                      .is_recorded = std::max(scheduled, now) >= record_begin_};
  return Admit(ticket) ? std::optional(ticket) : std::nullopt;
}

std::int64_t Tickets::CloseAndCountUntaken(absl::Duration now) {
  const absl::Duration end = std::min(now, end_);
  std::int64_t untaken = 0;
  absl::MutexLock lock(&mutex_);
  while (!is_over_ && now >= record_begin_) {
    const Ticket ticket{.scheduled = start_ + schedule_.Next(), .is_recorded = true};
    if (ticket.scheduled >= end || !Admit(ticket)) break;
    ++untaken;
  }
  is_over_ = true;
  return untaken;
}

}  // namespace attention::loadgen
