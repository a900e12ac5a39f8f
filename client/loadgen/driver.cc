#include "client/loadgen/driver.h"

#include <algorithm>
#include <semaphore>
#include <thread>
#include <utility>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "attention/client/errors.h"

namespace attention::loadgen {
namespace {

constexpr absl::Duration kPollInterval = absl::Milliseconds(50);
// Users prepared or closed at once: enough to overlap round trips, few enough that their contexts
// do not all lie in memory.
constexpr int kSetupInFlight = 8;
constexpr absl::Duration kCloseTimeout = absl::Seconds(5);

// A closed loop answers a failed request with the next one; were that to fail as fast as a
// connection is refused, it would spin. The delay that a server asks for is honoured.
constexpr absl::Duration kRestAfterFailure = absl::Milliseconds(100);
constexpr absl::Duration kRestAfterRefusal = absl::Milliseconds(10);
constexpr absl::Duration kMaxRest = absl::Seconds(1);

// An open loop that is behind at its end still sends what was due, but not for longer than this.
constexpr absl::Duration kMaxOverrun = absl::Seconds(1);

absl::Duration RestAfter(const absl::Status& status) {
  if (status.ok()) return absl::ZeroDuration();
  if (absl::IsUnavailable(status)) return kRestAfterFailure;
  if (!IsRefusal(status)) return absl::ZeroDuration();
  return std::min(client::RetryDelay(status).value_or(kRestAfterRefusal), kMaxRest);
}

}  // namespace

Driver::Driver(const Options& options, Workload& workload, Collector& collector, Verifier& verifier,
               Clock& clock)
    : options_(options),
      workload_(workload),
      collector_(collector),
      verifier_(verifier),
      clock_(clock),
      pool_(workload.num_users(), options.in_flight_limit(), clock) {}

client::CallOptions Driver::Call() const {
  client::CallOptions call;
  call.timeout = options_.timeout;
  call.cancellation = cancel_.get_token();
  // A retry inside the SDK would hide an error and count as latency.
  call.retry_policy = client::RetryPolicy::None();
  return call;
}

absl::Status Driver::ForAllUsers(
    const std::function<void(int user, const client::StatusCallback& done)>& start,
    const std::function<bool()>& is_interrupted) {
  std::counting_semaphore<> slots(kSetupInFlight);
  absl::Mutex mutex;
  absl::Status first_error;
  const auto has_failed = [&] {
    absl::MutexLock lock(&mutex);
    return !first_error.ok();
  };
  const auto done = [&](const absl::Status& status) {
    {
      absl::MutexLock lock(&mutex);
      first_error.Update(status);
    }
    slots.release();
  };
  for (int user = 0; user < workload_.num_users() && !has_failed() && !is_interrupted(); ++user) {
    slots.acquire();
    start(user, done);
  }
  for (int i = 0; i < kSetupInFlight; ++i) slots.acquire();
  absl::MutexLock lock(&mutex);
  return first_error;
}

absl::Status Driver::Prepare(const std::function<bool()>& is_interrupted) {
  return ForAllUsers(
      [this](int user, const client::StatusCallback& done) {
        workload_.Prepare(user, Call(), done);
      },
      is_interrupted);
}

void Driver::Close() {
  client::CallOptions call;
  call.timeout = std::min(options_.timeout, kCloseTimeout);
  call.retry_policy = client::RetryPolicy::None();
  const absl::Status ignored = ForAllUsers(
      [this, &call](int user, const client::StatusCallback& done) {
        workload_.Close(user, call, [done](const absl::Status&) { done(absl::OkStatus()); });
      },
      [] { return false; });
}

RunFacts Driver::Run(const std::function<bool(const DriverState&)>& poll) {
  const absl::Duration start = clock_.Now();
  tickets_ = std::make_unique<Tickets>(options_, start);
  if (options_.warmup == absl::ZeroDuration()) cpu_.Start();
  running_senders_ = options_.threads;
  std::vector<absl::Duration> busy(static_cast<std::size_t>(options_.threads));
  std::vector<absl::Duration> total(busy.size());
  std::vector<std::jthread> senders;
  for (std::size_t i = 0; i < busy.size(); ++i) {
    senders.emplace_back([this, &busy, &total, i] {
      RunSender(busy[i], total[i]);
      --running_senders_;
    });
  }
  Monitor(poll, start);
  senders.clear();

  RunFacts facts;
  facts.is_interrupted = stop_;
  const absl::Duration now = clock_.Now();
  if (options_.mode == LoopMode::kOpen) {
    facts.num_unsent = untaken_ + tickets_->CloseAndCountUntaken(now);
  }
  const absl::Duration last_answer = collector_.totals().last_answer;
  const absl::Duration planned_end = stop_ ? now : std::min(now, tickets_->end());
  // A run that its number of requests ended was over with the last answer.
  const absl::Duration end =
      tickets_->has_used_up_requests() && !stop_ ? last_answer : std::max(planned_end, last_answer);
  facts.recorded = std::max(end - tickets_->record_begin(), absl::ZeroDuration());
  absl::Duration all_busy, all;
  for (const absl::Duration& time : busy) all_busy += time;
  for (const absl::Duration& time : total) all += time;
  if (all > absl::ZeroDuration()) facts.sender_busy_share = absl::FDivDuration(all_busy, all);
  facts.cpu = cpu_.Use();
  return facts;
}

// Watches senders first and then the answers that are outstanding.
void Driver::Monitor(const std::function<bool(const DriverState&)>& poll, absl::Duration start) {
  bool is_recording = options_.warmup == absl::ZeroDuration();
  for (;;) {
    const bool senders_are_done = running_senders_ == 0;
    if (senders_are_done && pool_.WaitUntilIdle(kPollInterval)) return;
    if (!senders_are_done) std::this_thread::sleep_for(absl::ToChronoMilliseconds(kPollInterval));
    const absl::Duration now = clock_.Now();
    if (!is_recording && now >= tickets_->record_begin()) {
      is_recording = true;
      cpu_.Start();
    }
    const DriverState state{now - start, is_recording, pool_.in_use()};
    if (poll(state) && !stop_) {
      stop_ = true;
      cancel_.request_stop();
    }
  }
}

bool Driver::HasEnded() const { return stop_ || clock_.Now() >= tickets_->end(); }

void Driver::RunSender(absl::Duration& busy, absl::Duration& total) {
  const absl::Duration begin = clock_.Now();
  absl::Duration idle;
  while (!stop_ && (options_.mode == LoopMode::kOpen ? SendScheduled(idle) : SendNow(idle))) {
  }
  total = clock_.Now() - begin;
  busy = total - idle;
}

bool Driver::SendNow(absl::Duration& idle) {
  const absl::Duration before = clock_.Now();
  const auto acquired = AcquireReady(tickets_->end());
  const absl::Duration now = clock_.Now();
  idle += now - before;
  if (!acquired.has_value()) return false;
  const auto ticket = tickets_->TakeNow(now);
  if (!ticket.has_value()) {
    pool_.Release(acquired->user, now);
    return false;
  }
  Send(acquired->user, *ticket, false);
  return true;
}

bool Driver::SendScheduled(absl::Duration& idle) {
  const absl::Duration before = clock_.Now();
  const auto ticket = tickets_->TakeNext(before);
  if (!ticket.has_value()) return false;
  if (before >= tickets_->end() + kMaxOverrun) {
    if (ticket->is_recorded) ++untaken_;
    return true;
  }
  if (before < ticket->scheduled) {
    is_behind_ = false;
    clock_.SleepUntil(ticket->scheduled, stop_);
  }
  // A stop wakes senders before their request was due.
  const bool is_due = clock_.Now() >= ticket->scheduled;
  const auto acquired = is_due ? AcquireReady(tickets_->end()) : std::nullopt;
  idle += clock_.Now() - before;
  if (!acquired.has_value()) {
    if (ticket->is_recorded && is_due) ++untaken_;
    return !stop_;
  }
  if (acquired->has_waited) is_behind_ = true;
  Send(acquired->user, *ticket, is_behind_);
  return true;
}

std::optional<AcquiredUser> Driver::AcquireReady(absl::Duration deadline) {
  bool has_waited = false;
  for (;;) {
    auto acquired = pool_.Acquire(deadline, stop_);
    if (!acquired.has_value()) return std::nullopt;
    acquired->has_waited |= has_waited;
    if (workload_.IsReady(acquired->user)) return acquired;
    has_waited = true;
    if (HasEnded()) {
      pool_.Release(acquired->user, clock_.Now() + kRestAfterFailure);
      return std::nullopt;
    }
    PrepareUser(acquired->user);
  }
}

void Driver::Send(int user, const Ticket& ticket, bool is_limited) {
  RequestTimes times;
  times.scheduled = ticket.scheduled;
  times.is_limited = is_limited;
  times.sent = clock_.Now();
  if (options_.mode == LoopMode::kClosed) times.scheduled = times.sent;
  workload_.Send(
      user, Call(),
      [this, user, is_recorded = ticket.is_recorded, times](absl::StatusOr<Answer> answer) {
        OnAnswer(user, is_recorded, times, std::move(answer));
      });
}

void Driver::OnAnswer(int user, bool is_recorded, RequestTimes times,
                      absl::StatusOr<Answer> answer) {
  times.answered = clock_.Now();
  if (!answer.ok()) {
    if (stop_ && absl::IsCancelled(answer.status())) {
      if (is_recorded) collector_.AddAbandoned();
    } else {
      collector_.AddFailure(times, answer.status(), is_recorded);
    }
    // An open loop keeps its pace whatever happens.
    const bool rests = options_.mode == LoopMode::kClosed;
    return FinishUser(user, rests ? RestAfter(answer.status()) : absl::ZeroDuration());
  }
  collector_.AddOk(times, answer->timing, answer->work, is_recorded);
  const auto finish = [this, user] { FinishUser(user, absl::ZeroDuration()); };
  if (is_recorded && verifier_.Wants()) {
    verifier_.Submit(*std::move(answer), finish);
  } else {
    finish();
  }
}

void Driver::FinishUser(int user, absl::Duration rest) {
  if (workload_.IsReady(user) || HasEnded()) {
    pool_.Release(user, clock_.Now() + rest);
  } else {
    PrepareUser(user);
  }
}

void Driver::PrepareUser(int user) {
  workload_.Prepare(user, Call(), [this, user](const absl::Status& status) {
    if (!status.ok() && !stop_) collector_.AddSetupFailure(status);
    const absl::Duration rest = status.ok() ? absl::ZeroDuration() : kRestAfterFailure;
    pool_.Release(user, clock_.Now() + rest);
  });
}

}  // namespace attention::loadgen
