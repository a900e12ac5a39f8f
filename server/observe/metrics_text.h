// The metrics in Prometheus' text format.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "server/base/metrics.h"

namespace attention::server {

// A value read when the page is rendered.
struct Gauge {
  std::string name;
  std::string help;
  std::function<double()> read;
};

std::string RenderMetrics(const ServerMetrics& metrics, const std::vector<Gauge>& gauges);

}  // namespace attention::server
