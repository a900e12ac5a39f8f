// Contenders that exchange the same bytes take turns, in an order that each round draws anew.
#pragma once

#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/benchmark/transport/caller.h"
#include "tests/benchmark/transport/child_process.h"

namespace attention::bench {

struct Contender {
  std::string name;
  Caller* caller = nullptr;
  const ChildProcess* server = nullptr;
  std::function<std::unique_ptr<Requests>()> make_requests;
  Load load;                   // in_flight and seconds are the contest's
  std::string reference = {};  // whose figures its own are divided by; empty: none
  // The bounds that those quotients should keep; 0: none.
  double max_p50_ratio = 0;
  double min_throughput_ratio = 0;
};

struct ContestOptions {
  double seconds = 1;  // of each turn
  int rounds = 5;
  int in_flight = 4;  // of the turns that measure throughput
};

// The figures of a contender over all rounds.
struct Figures {
  std::string exchange, contender, reference;
  double p50_us = 0;          // one in flight: the median of the rounds' medians
  double p99_us = 0;          // of all rounds together
  double mb_per_second = 0;   // requests and answers, `in_flight` at once
  double server_cpu_us = 0;   // of an exchange, one in flight
  double server_faults = 0;   // minor page faults of an exchange, one in flight
  std::size_t exchanges = 0;  // behind p50_us
  // Medians of the rounds' quotients; 0 without a reference.
  double p50_ratio = 0;
  double throughput_ratio = 0;
  double others_share = 0;  // of the processors' time during the contest, see OtherWork
  // The contender's own bounds.
  double max_p50_ratio = 0;
  double min_throughput_ratio = 0;

  bool is_missed() const {
    return (max_p50_ratio > 0 && p50_ratio > max_p50_ratio) ||
           (min_throughput_ratio > 0 && throughput_ratio < min_throughput_ratio);
  }
};
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Figures, exchange, contender, reference, p50_us, p99_us,
                                   mb_per_second, server_cpu_us, server_faults, exchanges,
                                   p50_ratio, throughput_ratio, others_share, max_p50_ratio,
                                   min_throughput_ratio)

// Contenders with a reference name another one of the same contest.
std::vector<Figures> RunContest(const std::string& exchange,
                                const std::vector<Contender>& contenders,
                                const ContestOptions& options);

void PrintHeader();
void Print(const std::vector<Figures>& figures);

}  // namespace attention::bench
