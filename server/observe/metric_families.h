// Every metric of the server as Prometheus' data model has them; metrics_page.h writes them down.
#pragma once

#include <prometheus/metric_family.h>

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "server/base/metrics.h"

namespace attention::server {

// A value read when the page is rendered.
struct Gauge {
  std::string name;
  std::string help;
  std::function<double()> read;
};

struct LabelledValue {
  std::vector<std::pair<std::string, std::string>> labels;
  double value = 0;
};

// Values under labels, read when the page is rendered.
struct LabelledMetric {
  enum class Kind { kGauge, kCounter };

  std::string name;
  std::string help;
  Kind kind = Kind::kGauge;
  std::function<std::vector<LabelledValue>()> read;
};

// A histogram at one moment: the counts agree with each other even while they are being written.
struct HistogramSnapshot {
  explicit HistogramSnapshot(const Histogram& histogram);

  std::int64_t zero_count = 0;
  std::vector<std::int64_t> buckets;  // [Histogram::kNumBuckets]
  std::int64_t count = 0;
  double sum = 0;
};

struct HistogramFamily {
  std::string name;
  std::string help;
  HistogramSnapshot snapshot;
};

std::vector<prometheus::MetricFamily> CollectCounters(const ServerMetrics& metrics);
std::vector<prometheus::MetricFamily> CollectGauges(const std::vector<Gauge>& gauges);
// Those that have no value have no family.
std::vector<prometheus::MetricFamily> CollectLabelled(const std::vector<LabelledMetric>& metrics);
std::vector<HistogramFamily> CollectHistograms(const ServerMetrics& metrics);

// A bound for each power of two.
prometheus::MetricFamily ClassicHistogram(const HistogramFamily& histogram);

}  // namespace attention::server
