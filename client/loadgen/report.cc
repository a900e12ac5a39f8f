#include "client/loadgen/report.h"

#include <algorithm>

#include "absl/strings/str_format.h"

namespace attention::loadgen {
namespace {

// Beyond these the figures say more about the client than about the server.
constexpr absl::Duration kMaxSendLag = absl::Milliseconds(1);
constexpr double kMaxBusyShare = 0.9;
// Poisson arrivals of a short run miss their mean rate by chance; more than this is no chance.
constexpr double kMaxUnsentShare = 0.001;

void WarnOfClient(const Report& report, std::vector<std::string>& warnings) {
  const absl::Duration lag = report.totals.send_lag.DurationPercentile(99);
  if (report.options.mode == LoopMode::kOpen && lag > kMaxSendLag) {
    warnings.push_back(
        absl::StrFormat("the client was the bottleneck: at p99 it sent %.1f ms late (--threads %d)",
                        absl::ToDoubleMilliseconds(lag), report.options.threads));
  }
  if (report.facts.sender_busy_share > kMaxBusyShare) {
    warnings.push_back(absl::StrFormat(
        "the client was the bottleneck: its senders were busy %.0f %% of the time (--threads %d)",
        100 * report.facts.sender_busy_share, report.options.threads));
  }
  if (report.facts.cpu.share() > kMaxBusyShare) {
    warnings.push_back(absl::StrFormat("the client was the bottleneck: it used %.1f of %d cores",
                                       report.facts.cpu.cores_used, report.facts.cpu.cores));
  }
}

void WarnOfSchedule(const Report& report, std::vector<std::string>& warnings) {
  const std::int64_t sent = report.totals.num_answered() + report.totals.num_abandoned;
  const std::int64_t due = sent + report.facts.num_unsent;
  if (static_cast<double>(report.facts.num_unsent) > kMaxUnsentShare * static_cast<double>(due)) {
    warnings.push_back(
        absl::StrFormat("--rate was not kept: %d of %d requests that were due had not been sent "
                        "when the run ended, "
                        "and are in no percentile",
                        report.facts.num_unsent, due));
  } else if (report.totals.num_limited > 0) {
    const int users = report.options.uses_sessions()
                          ? std::min(report.options.sessions, report.options.max_in_flight)
                          : report.options.max_in_flight;
    warnings.push_back(absl::StrFormat(
        "%d requests were sent late because %d were in flight or in preparation; their latency "
        "counts from the schedule",
        report.totals.num_limited, users));
  }
}

}  // namespace

Rates RatesOf(const Report& report) {
  const double seconds = absl::ToDoubleSeconds(report.facts.recorded);
  if (seconds <= 0) return {};
  const Work& work = report.totals.work;
  return {.requests_per_second = static_cast<double>(report.totals.num_ok) / seconds,
          .tokens_per_second = static_cast<double>(work.tokens) / seconds,
          .gflops = work.flops / seconds / 1e9,
          .sent_mb_per_second = static_cast<double>(work.bytes_sent) / seconds / 1e6,
          .received_mb_per_second = static_cast<double>(work.bytes_received) / seconds / 1e6};
}

ExitCode ExitCodeOf(const Report& report) {
  const Totals& totals = report.totals;
  if (report.facts.is_interrupted) return kExitInterrupted;
  if (totals.num_errors > 0 || report.verified.num_mismatches > 0) return kExitFailed;
  if (totals.num_refused > 0 && !report.options.allow_refused) return kExitFailed;
  if (totals.num_answered() == 0) return kExitFailed;
  return kExitOk;
}

std::vector<std::string> WarningsOf(const Report& report) {
  std::vector<std::string> warnings;
  WarnOfClient(report, warnings);
  WarnOfSchedule(report, warnings);
  if (report.totals.num_ok == 0) warnings.emplace_back("no request was answered with OK");
  if (report.verified.num_unchecked > 0) {
    warnings.push_back(absl::StrFormat("%d answers chosen by --verify were not checked",
                                       report.verified.num_unchecked));
  }
  return warnings;
}

}  // namespace attention::loadgen
