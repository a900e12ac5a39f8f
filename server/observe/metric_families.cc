#include "server/observe/metric_families.h"

#include <cmath>
#include <limits>
#include <utility>

#include "absl/status/status.h"

namespace attention::server {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;

MetricFamily Family(std::string name, std::string help, MetricType type) {
  MetricFamily family;
  family.name = "attention_" + std::move(name);
  family.help = std::move(help);
  family.type = type;
  return family;
}

MetricFamily CounterFamily(std::string name, std::string help, const Counter& counter) {
  MetricFamily family = Family(std::move(name), std::move(help), MetricType::Counter);
  family.metric.emplace_back().counter.value = static_cast<double>(counter.value());
  return family;
}

MetricFamily CallsFamily(const ServerMetrics& metrics) {
  MetricFamily family = Family("calls_total", "Finished calls by status code", MetricType::Counter);
  for (int code = 0; code < ServerMetrics::kNumStatusCodes; ++code) {
    ClientMetric& metric = family.metric.emplace_back();
    const std::string name = absl::StatusCodeToString(static_cast<absl::StatusCode>(code));
    metric.label.push_back({"code", name});
    metric.counter.value = static_cast<double>(metrics.calls_by_code[code].value());
  }
  return family;
}

MetricFamily DroppedFamily(const ServerMetrics& metrics) {
  static constexpr const char* kReasons[kNumDropReasons] = {"deadline", "cancelled", "draining"};
  MetricFamily family = Family("dropped_requests_total",
                               "Requests dropped before they were computed", MetricType::Counter);
  for (int reason = 0; reason < kNumDropReasons; ++reason) {
    ClientMetric& metric = family.metric.emplace_back();
    metric.label.push_back({"reason", kReasons[reason]});
    metric.counter.value = static_cast<double>(metrics.dropped[reason].value());
  }
  return family;
}

MetricFamily RefusedConnectionsFamily(const ServerMetrics& metrics) {
  static constexpr const char* kReasons[kNumConnectionRefusals] = {"descriptors", "all", "peer"};
  MetricFamily family = Family("connections_refused_total",
                               "Connections closed as soon as they were accepted, by what had run "
                               "out",
                               MetricType::Counter);
  for (int reason = 0; reason < kNumConnectionRefusals; ++reason) {
    ClientMetric& metric = family.metric.emplace_back();
    metric.label.push_back({"reason", kReasons[reason]});
    metric.counter.value = static_cast<double>(metrics.connections_refused[reason].value());
  }
  return family;
}

MetricFamily ProbesFamily(const ServerMetrics& metrics) {
  MetricFamily family = Family("listener_probes_total",
                               "The server's own calls through its listeners", MetricType::Counter);
  const std::pair<const char*, const Counter&> outcomes[] = {{"answered", metrics.probes_answered},
                                                             {"missed", metrics.probes_missed}};
  for (const auto& [outcome, counter] : outcomes) {
    ClientMetric& metric = family.metric.emplace_back();
    metric.label.push_back({"outcome", outcome});
    metric.counter.value = static_cast<double>(counter.value());
  }
  return family;
}

}  // namespace

HistogramSnapshot::HistogramSnapshot(const Histogram& histogram)
    : zero_count(histogram.zero_count()), count(zero_count), sum(histogram.sum()) {
  buckets.reserve(Histogram::kNumBuckets);
  for (int i = 0; i < Histogram::kNumBuckets; ++i) {
    buckets.push_back(histogram.BucketCount(i));
    count += buckets.back();
  }
}

std::vector<MetricFamily> CollectCounters(const ServerMetrics& metrics) {
  return {
      CallsFamily(metrics),
      DroppedFamily(metrics),
      RefusedConnectionsFamily(metrics),
      CounterFamily("connections_reset_too_often_total",
                    "Connections that reset calls by the thousand, and were closed for it",
                    metrics.connections_reset_too_often),
      ProbesFamily(metrics),
      CounterFamily("rejected_queue_full_total", "Requests refused because the queue was full",
                    metrics.rejected_queue_full),
      CounterFamily("sessions_created_total", "Sessions created", metrics.sessions_created),
      CounterFamily("sessions_expired_total", "Sessions dropped after their TTL",
                    metrics.sessions_expired),
      CounterFamily("sessions_lost_total", "Sessions lost with the memory of a device",
                    metrics.sessions_lost),
      CounterFamily("sessions_spilled_total", "Idle sessions whose pages went to host memory",
                    metrics.sessions_spilled),
      CounterFamily("sessions_restored_total", "Sessions whose pages came back from host memory",
                    metrics.sessions_restored),
      CounterFamily("device_failures_total", "Failures after which a device was set up again",
                    metrics.device_failures),
      CounterFamily("tokens_appended_total", "Rows appended to KV caches, counted per layer",
                    metrics.tokens_appended),
      CounterFamily("query_rows_total", "Query rows received", metrics.query_rows),
      CounterFamily("flops_total", "Estimated arithmetic of computed requests", metrics.flops),
      CounterFamily("input_bytes_total", "Tensor bytes received", metrics.input_bytes),
      CounterFamily("output_bytes_total", "Output bytes sent", metrics.output_bytes),
      CounterFamily("copied_bytes_total",
                    "Bytes of tensors copied between the wire and the kernels",
                    metrics.copied_bytes),
  };
}

std::vector<MetricFamily> CollectGauges(const std::vector<Gauge>& gauges) {
  std::vector<MetricFamily> families;
  for (const Gauge& gauge : gauges) {
    families.push_back(Family(gauge.name, gauge.help, MetricType::Gauge));
    families.back().metric.emplace_back().gauge.value = gauge.read();
  }
  return families;
}

std::vector<MetricFamily> CollectLabelled(const std::vector<LabelledMetric>& metrics) {
  std::vector<MetricFamily> families;
  for (const LabelledMetric& metric : metrics) {
    const bool is_gauge = metric.kind == LabelledMetric::Kind::kGauge;
    MetricFamily family =
        Family(metric.name, metric.help, is_gauge ? MetricType::Gauge : MetricType::Counter);
    for (const LabelledValue& read : metric.read()) {
      ClientMetric& value = family.metric.emplace_back();
      for (const auto& [name, label] : read.labels) value.label.push_back({name, label});
      (is_gauge ? value.gauge.value : value.counter.value) = read.value;
    }
    if (!family.metric.empty()) families.push_back(std::move(family));
  }
  return families;
}

std::vector<HistogramFamily> CollectHistograms(const ServerMetrics& metrics) {
  return {
      {"attention_call_seconds", "Duration of calls in the server",
       HistogramSnapshot(metrics.call_seconds)},
      {"attention_queue_seconds", "Time from arrival until a worker took the request",
       HistogramSnapshot(metrics.queue_seconds)},
      {"attention_batch_formation_seconds", "Forming and planning a batch",
       HistogramSnapshot(metrics.batch_formation_seconds)},
      {"attention_compute_seconds", "Computing a batch",
       HistogramSnapshot(metrics.compute_seconds)},
      {"attention_wire_in_seconds", "Decoding a request and copying its tensors",
       HistogramSnapshot(metrics.wire_in_seconds)},
      {"attention_wire_out_seconds", "From computed until handed to the transport",
       HistogramSnapshot(metrics.wire_out_seconds)},
      {"attention_batch_requests", "Requests of a batch",
       HistogramSnapshot(metrics.batch_requests)},
  };
}

MetricFamily ClassicHistogram(const HistogramFamily& histogram) {
  const HistogramSnapshot& snapshot = histogram.snapshot;
  MetricFamily family;
  family.name = histogram.name;
  family.help = histogram.help;
  family.type = MetricType::Histogram;
  ClientMetric::Histogram& out = family.metric.emplace_back().histogram;
  auto cumulative = static_cast<std::uint64_t>(snapshot.zero_count);
  out.bucket.push_back({cumulative, Histogram::kZeroThreshold});
  for (int i = 0; i < Histogram::kNumBuckets; ++i) {
    cumulative += static_cast<std::uint64_t>(snapshot.buckets[i]);
    if ((i + 1) % Histogram::kPerDoubling != 0) continue;
    const int exponent = Histogram::kMinExponent + (i + 1) / Histogram::kPerDoubling;
    // The last one holds all that is larger, too.
    const bool is_last = i + 1 == Histogram::kNumBuckets;
    out.bucket.push_back(
        {cumulative, is_last ? std::numeric_limits<double>::infinity() : std::exp2(exponent)});
  }
  out.sample_sum = snapshot.sum;
  out.sample_count = cumulative;
  return family;
}

}  // namespace attention::server
