#include "server/observe/metrics_text.h"

#include <gmock/gmock.h>

#include <set>
#include <sstream>

namespace attention::server {
namespace {

using ::testing::HasSubstr;

TEST(MetricsTextTest, CountersGaugesAndHistogramsAppearWithTheirValues) {
  ServerMetrics metrics;
  metrics.tokens_appended.Add(12);
  metrics.calls_by_code[3].Add(2);
  metrics.compute_seconds.Observe(3e-6);
  const std::string text =
      RenderMetrics(metrics, {{"sessions", "Live sessions", [] { return 5.0; }}});
  EXPECT_THAT(text, HasSubstr("attention_tokens_appended_total 12"));
  EXPECT_THAT(text, HasSubstr("attention_calls_total{code=\"INVALID_ARGUMENT\"} 2"));
  EXPECT_THAT(text, HasSubstr("attention_sessions 5"));
  EXPECT_THAT(text, HasSubstr("attention_compute_seconds_bucket{le=\"2e-06\"} 0"));
  EXPECT_THAT(text, HasSubstr("attention_compute_seconds_bucket{le=\"4e-06\"} 1"));
  EXPECT_THAT(text, HasSubstr("attention_compute_seconds_bucket{le=\"+Inf\"} 1"));
  EXPECT_THAT(text, HasSubstr("attention_compute_seconds_count 1"));
}

// Dashboards and alerts depend on these names: changing one is a change of the interface.
TEST(MetricsTextTest, TheNamesAreAContract) {
  std::set<std::string> names;
  std::istringstream text(RenderMetrics(ServerMetrics{}, {}));
  for (std::string line; std::getline(text, line);) {
    std::istringstream words(line);
    std::string hash, type, name;
    if (words >> hash >> type >> name && hash == "#" && type == "TYPE") names.insert(name);
  }
  EXPECT_EQ(names, (std::set<std::string>{
                       "attention_batch_formation_seconds", "attention_batch_requests",
                       "attention_call_seconds", "attention_calls_total",
                       "attention_compute_seconds", "attention_copied_bytes_total",
                       "attention_dropped_requests_total", "attention_flops_total",
                       "attention_input_bytes_total", "attention_output_bytes_total",
                       "attention_query_rows_total", "attention_queue_seconds",
                       "attention_rejected_queue_full_total", "attention_sessions_created_total",
                       "attention_sessions_expired_total", "attention_tokens_appended_total",
                       "attention_wire_in_seconds", "attention_wire_out_seconds"}));
}

}  // namespace
}  // namespace attention::server
