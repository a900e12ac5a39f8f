// Runs the load: sender threads take a ticket (when) and a virtual user (who), send, and the
// answer's callback records it and gives the user back. Open and closed loop differ only in the
// order of the two: a closed loop waits for a user and sends at once, an open loop waits for the
// scheduled time and then needs a user, of which there are as many as may be in flight.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <stop_token>

#include "absl/status/status.h"
#include "client/loadgen/clock.h"
#include "client/loadgen/collector.h"
#include "client/loadgen/cpu_meter.h"
#include "client/loadgen/options.h"
#include "client/loadgen/tickets.h"
#include "client/loadgen/user_pool.h"
#include "client/loadgen/verifier.h"
#include "client/loadgen/workload.h"

namespace attention::loadgen {

// The run as a whole, beside the outcomes of its requests.
struct RunFacts {
  absl::Duration recorded;  // from the end of the warm-up to the end, or the last answer after it
  std::int64_t num_unsent = 0;  // open loop: due, but not sent when the run ended
  bool is_interrupted = false;
  double sender_busy_share = 0;  // of the senders' time: neither asleep nor waiting for a user
  CpuUse cpu;
};

// The state of a run while it runs.
struct DriverState {
  absl::Duration elapsed;  // since the run's begin, warm-up included
  bool is_recording = false;
  int in_flight = 0;
};

class Driver {
 public:
  // All must outlive the driver.
  Driver(const Options& options, Workload& workload, Collector& collector, Verifier& verifier,
         Clock& clock);

  // Makes every virtual user ready. Blocks. The first error ends it.
  absl::Status Prepare(const std::function<bool()>& is_interrupted);
  // Runs the load until its end or until `poll`, which is called some twenty times a second on this
  // thread, returns true. All requests are answered when it returns. Once.
  RunFacts Run(const std::function<bool(const DriverState&)>& poll);
  // Gives back what the virtual users hold in the server. Blocks; failures are left to the server's
  // TTL.
  void Close();

 private:
  absl::Status ForAllUsers(
      const std::function<void(int user, const client::StatusCallback& done)>& start,
      const std::function<bool()>& is_interrupted);
  void RunSender(absl::Duration& busy, absl::Duration& total);
  bool SendScheduled(absl::Duration& idle);
  bool SendNow(absl::Duration& idle);
  // A user that is ready; nullopt when the run ends first.
  std::optional<AcquiredUser> AcquireReady(absl::Duration deadline);
  void Send(int user, const Ticket& ticket, bool is_limited);
  void OnAnswer(int user, bool is_recorded, RequestTimes times, absl::StatusOr<Answer> answer);
  void FinishUser(int user, absl::Duration rest);
  void PrepareUser(int user);
  void Monitor(const std::function<bool(const DriverState&)>& poll, absl::Duration start);
  bool HasEnded() const;

  client::CallOptions Call() const;

  const Options& options_;
  Workload& workload_;
  Collector& collector_;
  Verifier& verifier_;
  Clock& clock_;
  UserPool pool_;
  std::unique_ptr<Tickets> tickets_;
  std::atomic<bool> stop_ = false;       // set by an interrupt
  std::atomic<bool> is_behind_ = false;  // the schedule slips for want of users
  std::atomic<int> running_senders_ = 0;
  std::atomic<std::int64_t> untaken_ = 0;  // taken, but no user was free before the end
  std::stop_source cancel_;
  CpuMeter cpu_;
};

}  // namespace attention::loadgen
