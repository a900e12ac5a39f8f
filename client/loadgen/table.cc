#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/loadgen/report.h"

namespace attention::loadgen {
namespace {

double Ms(std::int64_t nanoseconds) { return static_cast<double>(nanoseconds) / 1e6; }

std::string Load(const Options& options) {
  if (options.mode == LoopMode::kClosed) {
    return absl::StrFormat("closed loop, concurrency %d", options.concurrency);
  }
  return absl::StrFormat("open loop, %g requests/s, %s arrivals, at most %d in flight",
                         options.rate, ToString(options.arrivals), options.max_in_flight);
}

std::string Shape(const Options& options) {
  const ShapeOptions& shape = options.shape;
  std::string lengths = absl::StrCat("prompt of ", shape.q_len, " tokens");
  if (options.workload == WorkloadKind::kAttend) {
    lengths = absl::StrCat("q_len ", shape.q_len, ", kv_len ", shape.kv_len);
  } else if (options.workload == WorkloadKind::kDecode) {
    lengths = absl::StrCat("context ", options.context, " + up to ", options.decode_tokens);
  }
  if (options.workload == WorkloadKind::kMixed) {
    lengths =
        absl::StrCat("q_len ", shape.q_len, ", kv_len ", shape.kv_len, ", prompt of ", shape.q_len,
                     " tokens, context ", options.context, " + up to ", options.decode_tokens);
  }
  std::string sessions;
  if (options.uses_sessions()) {
    sessions = absl::StrFormat(", %d sessions of %d layers", options.sessions, options.layers);
    if (options.streams > 0) absl::StrAppendFormat(&sessions, " on %d streams", options.streams);
  }
  std::string dtypes(DTypeName(shape.dtype));
  if (shape.kv_dtype.has_value()) {
    absl::StrAppend(&dtypes, " over ", std::string(DTypeName(*shape.kv_dtype)));
  }
  const std::string window =
      shape.window > 0 ? absl::StrFormat(", window %d", shape.window) : std::string();
  return absl::StrFormat("%s, heads %d/%d, head_dim %d/%d, %s, %s%s%s", lengths, shape.num_q_heads,
                         shape.num_kv_heads, shape.head_dim_qk, shape.head_dim_v, dtypes,
                         shape.is_causal ? "causal" : "full", window, sessions);
}

void AddHeading(const Report& report, std::string& table) {
  absl::StrAppend(&table, "\nattention-loadgen: ", ToString(report.options.workload), ", ",
                  Load(report.options), "\n  ", Shape(report.options), "\n");
  if (report.server.has_value()) {
    absl::StrAppend(&table, "  server ", report.server->version, " (", report.server->commit, ")");
    for (const client::Device& device : report.server->devices) {
      if (device.is_used) absl::StrAppend(&table, ", ", device.backend, ": ", device.name);
    }
    absl::StrAppend(&table, "\n");
  }
  if (report.shared_memory.num_requests > 0) {
    absl::StrAppendFormat(&table, "  %d requests by shared memory, %d MiB of it\n",
                          report.shared_memory.num_requests,
                          report.shared_memory.mapped_bytes >> 20);
  }
}

void AddCounts(const Report& report, std::string& table) {
  const Totals& totals = report.totals;
  absl::StrAppendFormat(&table, "\n  requests  %9d ok  %7d refused  %7d errors", totals.num_ok,
                        totals.num_refused, totals.num_errors);
  if (report.facts.num_unsent > 0) {
    absl::StrAppendFormat(&table, "  %7d unsent", report.facts.num_unsent);
  }
  if (totals.num_abandoned > 0) {
    absl::StrAppendFormat(&table, "  %7d abandoned", totals.num_abandoned);
  }
  absl::StrAppendFormat(&table, "   in %.2f s%s\n", absl::ToDoubleSeconds(report.facts.recorded),
                        report.facts.is_interrupted ? " (interrupted)" : "");
  for (const auto& [key, tally] : totals.errors) {
    absl::StrAppendFormat(&table, "  %9d x %s, reason %s: %s\n", tally.count, key.first, key.second,
                          tally.example);
  }
}

void AddRates(const Report& report, std::string& table) {
  const Rates rates = RatesOf(report);
  absl::StrAppendFormat(&table,
                        "  rates     %.1f requests/s   %.1f tokens/s   %.2f GFLOP/s   "
                        "%.1f MB/s sent   %.1f MB/s received\n",
                        rates.requests_per_second, rates.tokens_per_second, rates.gflops,
                        rates.sent_mb_per_second, rates.received_mb_per_second);
}

void AddRow(std::string& table, const char* name, const Histogram& times) {
  absl::StrAppendFormat(&table, "  %-20s %9.3f %9.3f %9.3f %9.3f %9.3f %9.3f\n", name,
                        times.mean() / 1e6, Ms(times.Percentile(50)), Ms(times.Percentile(90)),
                        Ms(times.Percentile(99)), Ms(times.Percentile(99.9)), Ms(times.max()));
}

void AddTimes(const Report& report, std::string& table) {
  const Totals& totals = report.totals;
  absl::StrAppendFormat(&table, "\n  %-20s %9s %9s %9s %9s %9s %9s\n", "milliseconds", "mean",
                        "p50", "p90", "p99", "p99.9", "max");
  AddRow(table, "latency", totals.latency);
  AddRow(table, "  server: queue", totals.queue);
  AddRow(table, "  server: forming", totals.batch_formation);
  AddRow(table, "  server: computing", totals.compute);
  AddRow(table, "  network, encoding", totals.outside);
  if (totals.num_refused > 0) AddRow(table, "refusal", totals.refusal);
  if (report.options.mode == LoopMode::kOpen) AddRow(table, "  sent late by", totals.slip);
  absl::StrAppendFormat(&table, "  batch size: median %d, mean %.1f, max %d\n",
                        totals.batch_size.Percentile(50), totals.batch_size.mean(),
                        totals.batch_size.max());
}

void AddChecks(const Report& report, std::string& table) {
  if (report.options.verify_fraction > 0) {
    const VerifyResult& verified = report.verified;
    absl::StrAppendFormat(&table,
                          "\n  verified against float64: %d answers (%d query rows), %d "
                          "mismatches\n",
                          verified.num_checked, verified.rows_checked, verified.num_mismatches);
  }
  absl::StrAppendFormat(&table, "  self check: client used %.2f of %d cores, senders busy %.0f %%",
                        report.facts.cpu.cores_used, report.facts.cpu.cores,
                        100 * report.facts.sender_busy_share);
  if (report.options.mode == LoopMode::kOpen) {
    absl::StrAppendFormat(&table, ", sending late by %.3f ms at p99",
                          Ms(report.totals.send_lag.Percentile(99)));
  }
  absl::StrAppend(&table, "\n");
  for (const std::string& warning : WarningsOf(report)) {
    absl::StrAppend(&table, "  WARNING: ", warning, "\n");
  }
}

}  // namespace

std::string FormatTable(const Report& report) {
  std::string table;
  AddHeading(report, table);
  AddCounts(report, table);
  AddRates(report, table);
  if (report.totals.num_ok > 0) AddTimes(report, table);
  AddChecks(report, table);
  return table;
}

}  // namespace attention::loadgen
