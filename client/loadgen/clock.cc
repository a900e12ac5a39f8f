#include "client/loadgen/clock.h"

#include <algorithm>
#include <chrono>
#include <thread>

#ifdef __linux__
#include <sys/prctl.h>
#endif

namespace attention::loadgen {
namespace {

// Long enough to cost nothing, short enough that Ctrl-C feels immediate.
constexpr absl::Duration kStopCheckInterval = absl::Milliseconds(50);

// Linux lets a sleeping thread oversleep by 50 us so that wake-ups coalesce; in an open loop that
// lateness would be charged to the server.
void RequestPreciseSleep() {
#ifdef __linux__
  thread_local const bool is_set = prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0) == 0;
  (void)is_set;
#endif
}

}  // namespace

absl::Duration SteadyClock::Now() const {
  return absl::FromChrono(std::chrono::steady_clock::now().time_since_epoch());
}

void SteadyClock::SleepUntil(absl::Duration time, const std::atomic<bool>& stop) {
  RequestPreciseSleep();
  while (!stop.load(std::memory_order_relaxed)) {
    const absl::Duration left = time - Now();
    if (left <= absl::ZeroDuration()) return;
    std::this_thread::sleep_for(absl::ToChronoNanoseconds(std::min(left, kStopCheckInterval)));
  }
}

}  // namespace attention::loadgen
