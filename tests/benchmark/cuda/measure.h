// Takes the times of a group: its contenders, checked beforehand and afterwards, in turns.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "tests/benchmark/cuda/bench_c.h"
#include "tests/benchmark/cuda/cases.h"
#include "tests/benchmark/cuda/ceilings.h"
#include "tests/benchmark/cuda/contender.h"

namespace attention::bench {

struct MeasureOptions {
  int rounds = 5;
  double turn_seconds = 0.03;  // of device time in each turn, within the bounds of repetitions
  bool is_cold = true;         // the L2 cache is evicted before each repetition
  int rows_per_part = 12;      // that are checked
};

enum class Verdict {
  kRight,
  kWrong,   // it has a result, but not that of float64; it gets no figure
  kAbsent,  // it does not have such a case
  kFailed,
};

struct Outcome {
  std::string contender = {};
  Verdict verdict = Verdict::kRight;
  std::string text = {};  // what ran, or why not
  double error = 0;       // of the worst row, in bounds (row_check.h)
  double seconds = 0;     // the median over the rounds of each turn's median; 0: no figure
  double least_seconds = 0, most_seconds = 0;  // of the rounds
};

struct CaseResult {
  Case bench_case = {};
  Work work = {};
  Ceilings ceilings = {};
  std::vector<Outcome> outcomes = {};  // ours first
  double beside_seconds = 0;           // the sum of the best times of the cases beside; 0: none

  const Outcome& ours() const { return outcomes.front(); }
  // The fastest peer with a figure; null: none.
  const Outcome* best_peer() const;
  double best_seconds() const;  // of anybody; 0: nobody has a figure
};

// The means of measuring. The device comes from the caller, everything else belongs to the bench.
struct Bench {
  std::shared_ptr<cuda::Device> device;
  std::unique_ptr<cuda::DeviceMeter> meter;
  std::unique_ptr<MatrixLibrary> library;  // may be null
  std::span<const AttentionBenchPeer> peers;
  MeasureOptions options;
};

// The result of each case. An error is the device's or ours; peers that fail are outcomes.
absl::StatusOr<std::vector<CaseResult>> MeasureGroup(const Bench& bench, const Group& group);

// Seconds of the device between two marks with no work between them: the excess in the time of each
// repetition.
absl::StatusOr<double> MeasureMarks(cuda::DeviceMeter& meter);

}  // namespace attention::bench
