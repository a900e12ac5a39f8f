#include "client/loadgen/progress.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/loadgen/clock.h"

namespace attention::loadgen {
namespace {

// Where lines are not rewritten, fewer of them will do.
constexpr absl::Duration kCheckInterval = absl::Seconds(5);

std::string TotalTime(const Options& options) {
  if (!options.duration.has_value()) return "";
  return absl::StrFormat("/%.0fs", absl::ToDoubleSeconds(options.warmup + *options.duration));
}

}  // namespace

std::string FormatProgress(const Options& options, const DriverState& state,
                           const Interval& interval, absl::Duration interval_length) {
  const double seconds = absl::ToDoubleSeconds(interval_length);
  const auto ms = [&interval](double percent) {
    return absl::ToDoubleMilliseconds(interval.latency.DurationPercentile(percent));
  };
  return absl::StrFormat(
      "%4.0fs%s %-9s %9.1f req/s  p50 %.2f ms  p99 %.2f ms  errors %d  refused %d  in flight %d",
      absl::ToDoubleSeconds(state.elapsed), TotalTime(options),
      state.is_recording ? "recording" : "warm-up",
      seconds > 0 ? static_cast<double>(interval.num_ok) / seconds : 0.0, ms(50), ms(99),
      interval.num_errors, interval.num_refused, state.in_flight);
}

Progress::Progress(const Options& options, Collector& collector, std::ostream& out,
                   bool is_terminal)
    : options_(options), collector_(collector), out_(out), is_terminal_(is_terminal) {}

Progress::~Progress() {
  if (is_terminal_ && has_written_) out_ << '\n' << std::flush;
}

bool Progress::IsDue(absl::Duration now) const {
  const bool is_shown = !options_.is_quiet && (is_terminal_ || options_.force_progress);
  return is_shown && now - last_ >= absl::Seconds(1);
}

void Progress::Update(const DriverState& state) {
  if (!IsDue(state.elapsed)) return;
  Write(FormatProgress(options_, state, collector_.TakeInterval(), state.elapsed - last_));
  last_ = state.elapsed;
}

void Progress::UpdateVerifying(std::int64_t left) {
  const absl::Duration now = SteadyClock().Now();
  const absl::Duration interval = is_terminal_ ? absl::Seconds(1) : kCheckInterval;
  if (options_.is_quiet || now - last_check_ < interval) return;
  Write(absl::StrCat("checking answers against float64: ", left, " left"));
  last_check_ = now;
}

void Progress::Write(const std::string& line) {
  // Erases the rest of a longer line before.
  out_ << (is_terminal_ ? "\r" : "") << line << (is_terminal_ ? "\033[K" : "\n") << std::flush;
  has_written_ = true;
}

}  // namespace attention::loadgen
