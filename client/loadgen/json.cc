// Keys are a contract with scripts: README.md lists them, json_test.cc holds them.
#include "absl/time/time.h"
#include "client/loadgen/report.h"

namespace attention::loadgen {
namespace {

using Json = nlohmann::ordered_json;

// Raised when a key changes its meaning or goes away.
constexpr int kSchemaVersion = 1;

double Us(std::int64_t nanoseconds) { return static_cast<double>(nanoseconds) / 1e3; }

Json OptionalSeconds(const std::optional<absl::Duration>& duration) {
  return duration.has_value() ? Json(absl::ToDoubleSeconds(*duration)) : Json(nullptr);
}

Json ShapeJson(const ShapeOptions& shape) {
  return {{"q_len", shape.q_len},
          {"kv_len", shape.kv_len},
          {"num_q_heads", shape.num_q_heads},
          {"num_kv_heads", shape.num_kv_heads},
          {"head_dim_qk", shape.head_dim_qk},
          {"head_dim_v", shape.head_dim_v},
          {"dtype", DTypeName(shape.dtype)},
          {"kv_dtype", DTypeName(shape.kv_dtype.value_or(shape.dtype))},
          {"causal", shape.is_causal},
          {"window", shape.window}};
}

Json OptionsJson(const Options& options) {
  const client::ClientOptions& connection = options.connection;
  return {{"targets", options.targets},
          {"workload", ToString(options.workload)},
          {"mode", ToString(options.mode)},
          {"concurrency", options.concurrency},
          {"rate", options.rate},
          {"arrivals", ToString(options.arrivals)},
          {"max_in_flight", options.max_in_flight},
          {"threads", options.threads},
          {"warmup_seconds", absl::ToDoubleSeconds(options.warmup)},
          {"duration_seconds", OptionalSeconds(options.duration)},
          {"requests", options.requests.has_value() ? Json(*options.requests) : Json(nullptr)},
          {"shape", ShapeJson(options.shape)},
          {"context", options.context},
          {"decode_tokens", options.decode_tokens},
          {"sessions", options.sessions},
          {"layers", options.layers},
          {"streams", options.streams},
          {"seed", options.seed},
          {"timeout_seconds", absl::ToDoubleSeconds(options.timeout)},
          {"connect_timeout_seconds", absl::ToDoubleSeconds(options.connect_timeout)},
          {"tenant", connection.tenant.has_value() ? Json(*connection.tenant) : Json(nullptr)},
          {"tls", connection.tls.has_value()},
          {"token", connection.token.is_set()},
          {"channels", options.channels},
          {"shared_memory", ToString(options.shared_memory)},
          {"verify", options.verify_fraction},
          {"allow_refused", options.allow_refused},
          {"quiet", options.is_quiet},
          {"progress", options.force_progress}};
}

Json MachineJson(const MachineInfo& machine) {
  return {{"cpu", machine.cpu},
          {"cores", machine.cores},
          {"memory_gib", machine.memory_gib},
          {"system", machine.system},
          {"compiler", machine.compiler}};
}

Json ServerJson(const std::optional<client::ServerInfo>& server) {
  if (!server.has_value()) return nullptr;
  Json devices = Json::array();
  for (const client::Device& device : server->devices) {
    devices.push_back({{"backend", device.backend},
                       {"name", device.name},
                       {"isa", device.isa},
                       {"num_threads", device.num_threads},
                       {"is_used", device.is_used}});
  }
  return {{"version", server->version},
          {"commit", server->commit},
          {"server_name", server->server_name},
          {"devices", devices}};
}

Json RequestsJson(const Report& report) {
  return {{"answered", report.totals.num_answered()}, {"ok", report.totals.num_ok},
          {"refused", report.totals.num_refused},     {"errors", report.totals.num_errors},
          {"unsent", report.facts.num_unsent},        {"abandoned", report.totals.num_abandoned}};
}

Json ErrorsJson(const ErrorTallies& errors) {
  Json list = Json::array();
  for (const auto& [key, tally] : errors) {
    list.push_back({{"code", key.first},
                    {"reason", key.second},
                    {"count", tally.count},
                    {"example", tally.example}});
  }
  return list;
}

Json RatesJson(const Rates& rates) {
  return {{"requests_per_second", rates.requests_per_second},
          {"tokens_per_second", rates.tokens_per_second},
          {"gflops", rates.gflops},
          {"sent_mb_per_second", rates.sent_mb_per_second},
          {"received_mb_per_second", rates.received_mb_per_second}};
}

Json TimesJson(const Histogram& times) {
  return {{"count", times.count()},
          {"mean", times.mean() / 1e3},
          {"min", Us(times.min())},
          {"p50", Us(times.Percentile(50))},
          {"p90", Us(times.Percentile(90))},
          {"p99", Us(times.Percentile(99))},
          {"p99_9", Us(times.Percentile(99.9))},
          {"max", Us(times.max())}};
}

Json BatchSizeJson(const Histogram& sizes) {
  return {{"mean", sizes.mean()}, {"p50", sizes.Percentile(50)}, {"max", sizes.max()}};
}

Json VerifyJson(const VerifyResult& verified) {
  return {{"checked", verified.num_checked},
          {"rows_checked", verified.rows_checked},
          {"mismatches", verified.num_mismatches},
          {"unchecked", verified.num_unchecked},
          {"examples", verified.mismatches}};
}

Json SharedMemoryJson(const client::SharedMemoryUsage& usage) {
  return {{"channels", usage.num_channels},
          {"mapped_bytes", usage.mapped_bytes},
          {"requests", usage.num_requests}};
}

Json SelfCheckJson(const Report& report) {
  return {{"cores_used", report.facts.cpu.cores_used},
          {"cores", report.facts.cpu.cores},
          {"sender_busy_share", report.facts.sender_busy_share},
          {"send_lag_us", TimesJson(report.totals.send_lag)},
          {"limited", report.totals.num_limited},
          {"warnings", WarningsOf(report)}};
}

}  // namespace

Json ToJson(const Report& report) {
  const Totals& totals = report.totals;
  return {{"schema_version", kSchemaVersion},
          {"started", absl::FormatTime(absl::RFC3339_sec, report.started, absl::UTCTimeZone())},
          {"options", OptionsJson(report.options)},
          {"machine", MachineJson(report.machine)},
          {"server", ServerJson(report.server)},
          {"recorded_seconds", absl::ToDoubleSeconds(report.facts.recorded)},
          {"interrupted", report.facts.is_interrupted},
          {"requests", RequestsJson(report)},
          {"errors", ErrorsJson(totals.errors)},
          {"rates", RatesJson(RatesOf(report))},
          {"latency_us", TimesJson(totals.latency)},
          {"server_queue_us", TimesJson(totals.queue)},
          {"server_batch_formation_us", TimesJson(totals.batch_formation)},
          {"server_compute_us", TimesJson(totals.compute)},
          {"outside_server_us", TimesJson(totals.outside)},
          {"refusal_us", TimesJson(totals.refusal)},
          {"schedule_slip_us", TimesJson(totals.slip)},
          {"batch_size", BatchSizeJson(totals.batch_size)},
          {"verified", VerifyJson(report.verified)},
          {"shared_memory", SharedMemoryJson(report.shared_memory)},
          {"self_check", SelfCheckJson(report)},
          {"exit_code", static_cast<int>(ExitCodeOf(report))}};
}

}  // namespace attention::loadgen
