// The page that Prometheus scrapes.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "server/base/metrics.h"
#include "server/observe/metric_families.h"

namespace attention::server {

struct MetricsPage {
  std::string content_type;
  std::string body;
};

// Renders the format that the scraper's Accept header asks for: protobuf with native histograms, or
// the text format, which has none.
MetricsPage RenderMetrics(const ServerMetrics& metrics, const std::vector<Gauge>& gauges,
                          std::string_view accept,
                          const std::vector<LabelledMetric>& labelled = {});

}  // namespace attention::server
