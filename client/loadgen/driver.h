// Runs the load: sender threads take a ticket (when) and a lane (who), send, and the answer's
// callback records it and gives the lane back. Open and closed loop differ only in the order of the
// two: a closed loop waits for a lane and sends at once, an open loop waits for the scheduled time
// and then needs a lane, of which there are as many as may be in flight.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <stop_token>

#include "absl/status/status.h"
#include "client/loadgen/clock.h"
#include "client/loadgen/collector.h"
#include "client/loadgen/cpu_meter.h"
#include "client/loadgen/lane_pool.h"
#include "client/loadgen/options.h"
#include "client/loadgen/tickets.h"
#include "client/loadgen/verifier.h"
#include "client/loadgen/workload.h"

namespace attention::loadgen {

// What the run was, beside what its requests met.
struct RunFacts {
  absl::Duration recorded;  // from the end of the warm-up to the end, or the last answer after it
  int64_t num_unsent = 0;   // open loop: due, but not sent when the run ended
  bool is_interrupted = false;
  double sender_busy_share = 0;  // of the senders' time: neither asleep nor waiting for a lane
  CpuUse cpu;
};

// What a run looks like while it runs.
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

  // Makes every lane ready. Blocks. The first error ends it.
  absl::Status Prepare(const std::function<bool()>& is_interrupted);
  // Runs the load until its end or until `poll`, which is called some twenty times a second on this
  // thread, returns true. All requests are answered when it returns. Once.
  RunFacts Run(const std::function<bool(const DriverState&)>& poll);
  // Gives back what the lanes hold in the server. Blocks; failures are left to the server's TTL.
  void Close();

 private:
  absl::Status ForAllLanes(
      const std::function<void(int lane, const client::StatusCallback& done)>& start,
      const std::function<bool()>& is_interrupted);
  void RunSender(absl::Duration& busy, absl::Duration& total);
  bool SendScheduled(absl::Duration& idle);
  bool SendNow(absl::Duration& idle);
  // A lane that is ready; nullopt when the run ends first.
  std::optional<AcquiredLane> AcquireReady(absl::Duration deadline);
  void Send(int lane, const Ticket& ticket, bool is_limited);
  void OnAnswer(int lane, bool is_recorded, RequestTimes times, absl::StatusOr<Answer> answer);
  void FinishLane(int lane, absl::Duration rest);
  void PrepareLane(int lane);
  void Monitor(const std::function<bool(const DriverState&)>& poll, absl::Duration start);
  bool HasEnded() const;

  client::CallOptions Call() const;

  const Options& options_;
  Workload& workload_;
  Collector& collector_;
  Verifier& verifier_;
  Clock& clock_;
  LanePool pool_;
  std::unique_ptr<Tickets> tickets_;
  std::atomic<bool> stop_ = false;       // by the user
  std::atomic<bool> is_behind_ = false;  // the schedule slips for want of lanes
  std::atomic<int> running_senders_ = 0;
  std::atomic<int64_t> untaken_ = 0;  // taken, but no lane came before the end
  std::stop_source cancel_;
  CpuMeter cpu_;
};

}  // namespace attention::loadgen
