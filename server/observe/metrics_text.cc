#include "server/observe/metrics_text.h"

#include <prometheus/metric_family.h>
#include <prometheus/text_serializer.h>

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

MetricFamily HistogramFamily(std::string name, std::string help, const Histogram& histogram) {
  MetricFamily family = Family(std::move(name), std::move(help), MetricType::Histogram);
  ClientMetric::Histogram& out = family.metric.emplace_back().histogram;
  std::uint64_t cumulative = 0;
  for (int i = 0; i <= Histogram::kNumBuckets; ++i) {
    cumulative += static_cast<std::uint64_t>(histogram.BucketCount(i));
    const double bound = i < Histogram::kNumBuckets ? histogram.UpperBound(i)
                                                    : std::numeric_limits<double>::infinity();
    out.bucket.push_back({cumulative, bound});
  }
  out.sample_sum = histogram.sum();
  out.sample_count = cumulative;  // agrees with the buckets even while they are being written
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

std::vector<MetricFamily> Histograms(const ServerMetrics& metrics) {
  return {
      HistogramFamily("call_seconds", "Duration of calls in the server", metrics.call_seconds),
      HistogramFamily("queue_seconds", "Time from arrival until a worker took the request",
                      metrics.queue_seconds),
      HistogramFamily("batch_formation_seconds", "Forming and planning a batch",
                      metrics.batch_formation_seconds),
      HistogramFamily("compute_seconds", "Computing a batch", metrics.compute_seconds),
      HistogramFamily("wire_in_seconds", "Decoding a request and copying its tensors",
                      metrics.wire_in_seconds),
      HistogramFamily("wire_out_seconds", "From computed until handed to the transport",
                      metrics.wire_out_seconds),
      HistogramFamily("batch_requests", "Requests of a batch", metrics.batch_requests),
  };
}

std::vector<MetricFamily> Counters(const ServerMetrics& metrics) {
  return {
      CallsFamily(metrics),
      DroppedFamily(metrics),
      CounterFamily("rejected_queue_full_total", "Requests refused because the queue was full",
                    metrics.rejected_queue_full),
      CounterFamily("sessions_created_total", "Sessions created", metrics.sessions_created),
      CounterFamily("sessions_expired_total", "Sessions dropped after their TTL",
                    metrics.sessions_expired),
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

}  // namespace

std::string RenderMetrics(const ServerMetrics& metrics, const std::vector<Gauge>& gauges) {
  std::vector<MetricFamily> families = Counters(metrics);
  for (MetricFamily& family : Histograms(metrics)) families.push_back(std::move(family));
  for (const Gauge& gauge : gauges) {
    MetricFamily family = Family(gauge.name, gauge.help, MetricType::Gauge);
    family.metric.emplace_back().gauge.value = gauge.read();
    families.push_back(std::move(family));
  }
  return prometheus::TextSerializer().Serialize(families);
}

}  // namespace attention::server
