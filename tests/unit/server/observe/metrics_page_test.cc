#include "server/observe/metrics_page.h"

#include <gmock/gmock.h>
#include <google/protobuf/util/delimited_message_util.h>

#include <cmath>
#include <map>
#include <set>
#include <sstream>

#include "io/prometheus/client/metrics.pb.h"

namespace attention::server {
namespace {

using ::testing::HasSubstr;

TEST(MetricsPageTest, CountersGaugesAndHistogramsAppearWithTheirValues) {
  ServerMetrics metrics;
  metrics.tokens_appended.Add(12);
  metrics.calls_by_code[3].Add(2);
  metrics.compute_seconds.Observe(3e-6);
  const auto [type, text] =
      RenderMetrics(metrics, {{"sessions", "Live sessions", [] { return 5.0; }}}, "*/*");
  EXPECT_EQ(type, "text/plain; version=0.0.4");
  EXPECT_THAT(text, HasSubstr("attention_tokens_appended_total 12"));
  EXPECT_THAT(text, HasSubstr("attention_calls_total{code=\"INVALID_ARGUMENT\"} 2"));
  EXPECT_THAT(text, HasSubstr("attention_sessions 5"));
  EXPECT_THAT(text, HasSubstr("attention_compute_seconds_bucket{le=\"1.9073486328125e-06\"} 0"));
  EXPECT_THAT(text, HasSubstr("attention_compute_seconds_bucket{le=\"3.814697265625e-06\"} 1"));
  EXPECT_THAT(text, HasSubstr("attention_compute_seconds_bucket{le=\"+Inf\"} 1"));
  EXPECT_THAT(text, HasSubstr("attention_compute_seconds_count 1"));
}

// Dashboards and alerts depend on these names: changing one is a change of the interface.
TEST(MetricsPageTest, TheNamesAreAContract) {
  std::set<std::string> names;
  std::istringstream text(RenderMetrics(ServerMetrics{}, {}, "").body);
  for (std::string line; std::getline(text, line);) {
    std::istringstream words(line);
    std::string hash, type, name;
    if (words >> hash >> type >> name && hash == "#" && type == "TYPE") names.insert(name);
  }
  EXPECT_EQ(names, (std::set<std::string>{"attention_batch_formation_seconds",
                                          "attention_batch_requests",
                                          "attention_call_seconds",
                                          "attention_calls_total",
                                          "attention_compute_seconds",
                                          "attention_connections_refused_total",
                                          "attention_connections_reset_too_often_total",
                                          "attention_copied_bytes_total",
                                          "attention_device_failures_total",
                                          "attention_dropped_requests_total",
                                          "attention_flops_total",
                                          "attention_input_bytes_total",
                                          "attention_listener_probes_total",
                                          "attention_output_bytes_total",
                                          "attention_query_rows_total",
                                          "attention_queue_seconds",
                                          "attention_rejected_queue_full_total",
                                          "attention_sessions_created_total",
                                          "attention_sessions_expired_total",
                                          "attention_sessions_lost_total",
                                          "attention_sessions_restored_total",
                                          "attention_sessions_spilled_total",
                                          "attention_tokens_appended_total",
                                          "attention_wire_in_seconds",
                                          "attention_wire_out_seconds"}));
}

// The Accept header that Prometheus sends when it scrapes native histograms.
constexpr char kNativeAccept[] =
    "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;"
    "q=0.6,text/plain;version=0.0.4;q=0.4,*/*;q=0.1";

std::map<std::string, io::prometheus::client::MetricFamily> ParseFamilies(const std::string& body) {
  std::istringstream input(body);
  google::protobuf::io::IstreamInputStream stream(&input);
  std::map<std::string, io::prometheus::client::MetricFamily> families;
  bool is_at_end = false;
  for (;;) {
    io::prometheus::client::MetricFamily family;
    if (!google::protobuf::util::ParseDelimitedFromZeroCopyStream(&family, &stream, &is_at_end)) {
      EXPECT_TRUE(is_at_end) << "garbage after " << families.size() << " families";
      return families;
    }
    families[family.name()] = family;
  }
}

TEST(MetricsPageTest, WhoAsksForProtobufGetsTheSameMetrics) {
  ServerMetrics metrics;
  metrics.calls_by_code[3].Add(2);
  const auto [type, body] =
      RenderMetrics(metrics, {{"sessions", "Live sessions", [] { return 5.0; }}}, kNativeAccept);
  EXPECT_THAT(type, HasSubstr("proto=io.prometheus.client.MetricFamily"));
  const auto families = ParseFamilies(body);
  const auto& calls = families.at("attention_calls_total");
  EXPECT_EQ(calls.type(), io::prometheus::client::COUNTER);
  EXPECT_EQ(calls.metric(3).label(0).value(), "INVALID_ARGUMENT");
  EXPECT_EQ(calls.metric(3).counter().value(), 2);
  EXPECT_EQ(families.at("attention_sessions").metric(0).gauge().value(), 5);
}

TEST(MetricsPageTest, NativeBucketsTellHowManyValuesEachHolds) {
  ServerMetrics metrics;
  std::map<int, std::int64_t> expected;  // counts by index: values up to 2^(index/8)
  for (const auto& [index, count] : {std::pair{-67, 3}, {-66, 1}, {-60, 2}, {8, 5}}) {
    expected[index] = count;
    for (int i = 0; i < count; ++i) metrics.compute_seconds.Observe(std::exp2((index - 0.5) / 8));
  }
  metrics.compute_seconds.Observe(0);
  const auto families = ParseFamilies(RenderMetrics(metrics, {}, kNativeAccept).body);
  const auto& histogram = families.at("attention_compute_seconds").metric(0).histogram();
  EXPECT_EQ(histogram.schema(), 3);
  EXPECT_EQ(histogram.zero_count(), 1u);
  EXPECT_EQ(histogram.sample_count(), 12u);
  EXPECT_GT(histogram.bucket_size(), 0) << "for scrapers without native histograms";
  std::map<int, std::int64_t> found;
  int index = 0, delta = 0;
  std::int64_t count = 0;
  for (const auto& span : histogram.positive_span()) {
    index += span.offset();
    for (std::uint32_t i = 0; i < span.length(); ++i) {
      count += histogram.positive_delta(delta++);
      found[index++] = count;
    }
  }
  EXPECT_EQ(found, expected);
  EXPECT_EQ(histogram.positive_span_size(), 3);
}

}  // namespace
}  // namespace attention::server
