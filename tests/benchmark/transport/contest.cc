#include "tests/benchmark/transport/contest.h"

#include <algorithm>
#include <cstdio>
#include <map>
#include <numeric>
#include <random>
#include <set>

#include "tests/benchmark/transport/other_work.h"

namespace attention::bench {
namespace {

double Quantile(std::vector<double> values, double share) {
  if (values.empty()) return 0;
  const auto at =
      values.begin() + static_cast<std::ptrdiff_t>(share * static_cast<double>(values.size() - 1));
  std::nth_element(values.begin(), at, values.end());
  return *at;
}

double Median(const std::vector<double>& values) { return Quantile(values, 0.5); }

struct Turns {
  std::vector<double> p50, rate, cpu, faults;  // of each round
  std::vector<double> latencies;
};

void TakeTurn(const Contender& contender, const ContestOptions& options, Turns* turns) {
  Load load = contender.load;
  load.seconds = options.seconds;
  load.in_flight = 1;
  const std::unique_ptr<Requests> requests = contender.make_requests();
  const ProcessUse before = contender.server->Use();
  const Sample alone = contender.caller->Run(load, *requests);
  const ProcessUse after = contender.server->Use();
  const double count = static_cast<double>(std::max<std::size_t>(alone.latencies.size(), 1));
  turns->p50.push_back(Median(alone.latencies));
  turns->cpu.push_back((after.cpu_seconds - before.cpu_seconds) / count);
  turns->faults.push_back((after.minor_faults - before.minor_faults) / count);
  turns->latencies.insert(turns->latencies.end(), alone.latencies.begin(), alone.latencies.end());
  load.in_flight = options.in_flight;
  const Sample full = contender.caller->Run(load, *requests);
  turns->rate.push_back(static_cast<double>(full.bytes) / std::max(full.elapsed, 1e-9));
}

double MedianQuotient(const std::vector<double>& a, const std::vector<double>& b) {
  std::vector<double> quotients;
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (b[i] > 0) quotients.push_back(a[i] / b[i]);
  }
  return Median(quotients);
}

}  // namespace

std::vector<Figures> RunContest(const std::string& exchange,
                                const std::vector<Contender>& contenders,
                                const ContestOptions& options) {
  std::map<std::string, Turns> turns;
  std::vector<std::size_t> order(contenders.size());
  std::iota(order.begin(), order.end(), 0);
  std::mt19937 random(1);
  std::set<const ChildProcess*> servers;
  for (const Contender& contender : contenders) servers.insert(contender.server);
  const OtherWork other_work(servers);
  for (int round = 0; round < options.rounds; ++round) {
    std::shuffle(order.begin(), order.end(), random);
    for (std::size_t i : order) TakeTurn(contenders[i], options, &turns[contenders[i].name]);
  }
  const double others_share = other_work.Share();
  std::vector<Figures> all;
  for (const Contender& contender : contenders) {
    const Turns& own = turns[contender.name];
    Figures figures{.exchange = exchange,
                    .contender = contender.name,
                    .reference = contender.reference,
                    .p50_us = 1e6 * Median(own.p50),
                    .p99_us = 1e6 * Quantile(own.latencies, 0.99),
                    .mb_per_second = 1e-6 * Median(own.rate),
                    .server_cpu_us = 1e6 * Median(own.cpu),
                    .server_faults = Median(own.faults),
                    .exchanges = own.latencies.size(),
                    .others_share = others_share,
                    .max_p50_ratio = contender.max_p50_ratio,
                    .min_throughput_ratio = contender.min_throughput_ratio};
    const auto reference = turns.find(contender.reference);
    if (reference != turns.end()) {
      figures.p50_ratio = MedianQuotient(own.p50, reference->second.p50);
      figures.throughput_ratio = MedianQuotient(own.rate, reference->second.rate);
    }
    all.push_back(figures);
  }
  return all;
}

void PrintHeader() {
  std::printf("%-14s %-26s %9s %9s %8s %9s %7s %7s %8s   %s\n", "exchange", "contender", "p50 us",
              "p99 us", "MB/s", "cpu us", "faults", "others", "p50 /", "MB/s / of the reference");
}

void Print(const std::vector<Figures>& figures) {
  for (const Figures& row : figures) {
    std::printf("%-14s %-26s %9.1f %9.1f %8.0f %9.1f %7.1f %5.0f %%", row.exchange.c_str(),
                row.contender.c_str(), row.p50_us, row.p99_us, row.mb_per_second, row.server_cpu_us,
                row.server_faults, 100 * row.others_share);
    if (row.p50_ratio > 0) {
      std::printf(" %8.2f %8.2f  %s", row.p50_ratio, row.throughput_ratio, row.reference.c_str());
      if (row.max_p50_ratio > 0) std::printf(", at most %.2f", row.max_p50_ratio);
      if (row.min_throughput_ratio > 0) std::printf(", at least %.2f", row.min_throughput_ratio);
      if (row.is_missed()) std::printf(": MISSED");
    }
    std::printf("\n");
  }
  std::fflush(stdout);
}

}  // namespace attention::bench
