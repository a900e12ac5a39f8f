#include "server/observe/metrics_page.h"

#include <google/protobuf/util/delimited_message_util.h>
#include <prometheus/text_serializer.h>

#include <cmath>
#include <sstream>
#include <utility>

#include "io/prometheus/client/metrics.pb.h"

namespace attention::server {
namespace {

namespace pb = ::io::prometheus::client;

constexpr char kTextType[] = "text/plain; version=0.0.4";
constexpr char kProtobufType[] =
    "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited";

// Scrapers list what they read best first, but Prometheus asks for protobuf at all only when it is
// to have native histograms.
bool AsksForProtobuf(std::string_view accept) {
  return accept.find("application/vnd.google.protobuf") != std::string_view::npos &&
         accept.find("io.prometheus.client.MetricFamily") != std::string_view::npos &&
         accept.find("encoding=delimited") != std::string_view::npos;
}

pb::MetricType TypeOf(prometheus::MetricType type) {
  switch (type) {
    case prometheus::MetricType::Counter:
      return pb::COUNTER;
    case prometheus::MetricType::Gauge:
      return pb::GAUGE;
    case prometheus::MetricType::Summary:
      return pb::SUMMARY;
    case prometheus::MetricType::Histogram:
      return pb::HISTOGRAM;
    default:
      return pb::UNTYPED;
  }
}

pb::MetricFamily ToProtobuf(const prometheus::MetricFamily& family) {
  pb::MetricFamily message;
  message.set_name(family.name);
  message.set_help(family.help);
  message.set_type(TypeOf(family.type));
  for (const prometheus::ClientMetric& metric : family.metric) {
    pb::Metric& out = *message.add_metric();
    for (const auto& label : metric.label) {
      pb::LabelPair& pair = *out.add_label();
      pair.set_name(label.name);
      pair.set_value(label.value);
    }
    switch (family.type) {
      case prometheus::MetricType::Counter:
        out.mutable_counter()->set_value(metric.counter.value);
        break;
      case prometheus::MetricType::Gauge:
        out.mutable_gauge()->set_value(metric.gauge.value);
        break;
      default:
        out.mutable_histogram()->set_sample_count(metric.histogram.sample_count);
        out.mutable_histogram()->set_sample_sum(metric.histogram.sample_sum);
        for (const auto& bucket : metric.histogram.bucket) {
          pb::Bucket& classic = *out.mutable_histogram()->add_bucket();
          classic.set_cumulative_count(bucket.cumulative_count);
          classic.set_upper_bound(bucket.upper_bound);
        }
    }
  }
  return message;
}

// Spans of the buckets that hold something.
void AddNativeBuckets(const HistogramSnapshot& snapshot, pb::Histogram* message) {
  message->set_schema(Histogram::kSchema);
  message->set_zero_threshold(Histogram::kZeroThreshold);
  message->set_zero_count(static_cast<std::uint64_t>(snapshot.zero_count));
  int next = -Histogram::kFirstIndex;  // of the bucket after the last span
  std::int64_t last_count = 0;
  pb::BucketSpan* span = nullptr;
  for (int i = 0; i < Histogram::kNumBuckets; ++i) {
    if (snapshot.buckets[i] == 0) continue;
    if (span == nullptr || i != next) {
      span = message->add_positive_span();
      span->set_offset(i - next);
    }
    span->set_length(span->length() + 1);
    message->add_positive_delta(snapshot.buckets[i] - last_count);
    last_count = snapshot.buckets[i];
    next = i + 1;
  }
}

pb::MetricFamily ToProtobuf(const HistogramFamily& histogram) {
  pb::MetricFamily message = ToProtobuf(ClassicHistogram(histogram));
  AddNativeBuckets(histogram.snapshot, message.mutable_metric(0)->mutable_histogram());
  return message;
}

}  // namespace

MetricsPage RenderMetrics(const ServerMetrics& metrics, const std::vector<Gauge>& gauges,
                          std::string_view accept, const std::vector<LabelledMetric>& labelled) {
  std::vector<prometheus::MetricFamily> families = CollectCounters(metrics);
  for (auto& family : CollectGauges(gauges)) families.push_back(std::move(family));
  for (auto& family : CollectLabelled(labelled)) families.push_back(std::move(family));
  const std::vector<HistogramFamily> histograms = CollectHistograms(metrics);
  if (!AsksForProtobuf(accept)) {
    for (const auto& histogram : histograms) families.push_back(ClassicHistogram(histogram));
    return {kTextType, prometheus::TextSerializer().Serialize(families)};
  }
  std::ostringstream body;
  for (const auto& family : families) {
    google::protobuf::util::SerializeDelimitedToOstream(ToProtobuf(family), &body);
  }
  for (const auto& histogram : histograms) {
    google::protobuf::util::SerializeDelimitedToOstream(ToProtobuf(histogram), &body);
  }
  return {kProtobufType, body.str()};
}

}  // namespace attention::server
