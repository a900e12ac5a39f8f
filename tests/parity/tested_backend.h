// The backend that a program of parity tests runs, and the sizes at which its kernels change their
// way. The tests are the same for every backend; a program links one definition of Tested().
#pragma once

#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/api/attention_backend.h"
#include "tests/support/attention_problem.h"
#include "tests/support/cpu_targets.h"

namespace attention::testing {

inline constexpr DType kDTypes[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16};
inline constexpr DType kKvDTypes[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16,
                                      DType::kInt8, DType::kFloat8E4M3};

struct Lengths {
  std::int64_t q_len = 0;
  std::int64_t kv_len = 0;
};

// A prompt in chunks: chunk i has rows [cuts[i], cuts[i + 1]).
using Cuts = std::vector<std::int64_t>;

struct TestedBackend {
  std::string name;  // of the tests' instances

  // Each computes every problem; made once.
  const std::vector<TargetBackend>& (*targets)();
  // Another one like the target, whose memory no run has used.
  std::unique_ptr<AttentionBackend> (*make)(const TargetBackend& target);
  // The same kernels with their work in other orders: of threads, or of blocks and warps.
  std::vector<std::unique_ptr<AttentionBackend>> (*make_in_other_orders)();

  // The type of queries with which its fastest kernels read such a cache.
  DType (*query_type)(DType kv_dtype);
  // The type of queries of problem `index` of a mixed batch.
  DType (*mixed_type)(int index, DType kv_dtype);

  std::vector<std::int64_t> edges;  // of tiles, blocks and ranges, on both sides
  Lengths prefill;                  // over several tiles or blocks, and ranges
  Lengths mixed;                    // the most in a mixed batch
  std::int64_t ranges_kv_len = 0;   // over several ranges
  // Rows over so many ranges that they are computed apart and merged.
  std::vector<ProblemSpec> merged_specs;
  Cuts prefill_cuts;
  // Rows of such magnitude that some of a tile are near 0 and others far from it.
  Cuts peaked_cuts;
  float peaked_magnitude = 1;

  std::vector<Lengths> exact_lengths;  // of problems with exact scores
  std::uint32_t num_drawn = 0;         // of those that are drawn

  // Rows, in_features and out_features of projections held against float64.
  std::vector<std::array<int, 3>> exact_projections;
  // Types of weights and rows whose products are computed differently.
  std::vector<std::pair<DType, DType>> projection_types;
  // in_features and out_features over several blocks, and the rows that go through them.
  std::vector<std::array<int, 2>> projection_shapes;
  std::int64_t projection_rows = 0;
  // The most that a rotation is off: sines in float64 may differ between host and device.
  float rotary_error = 0;
};

const TestedBackend& Tested();

// The fixture of the tests. Problems are computed once and compared on each target.
class BackendTest : public ::testing::TestWithParam<const TestedBackend*> {
 protected:
  const TestedBackend& tested() const { return *GetParam(); }
  const std::vector<TargetBackend>& targets() const { return tested().targets(); }
};

inline std::string NameOfTested(const ::testing::TestParamInfo<const TestedBackend*>& info) {
  return info.param->name;
}

// Different in every respect that an item of work may depend on.
std::vector<ProblemSpec> MixedSpecs(const TestedBackend& tested, int count);

}  // namespace attention::testing

#define ATTENTION_TEST_ON_BACKEND(suite)                                                  \
  INSTANTIATE_TEST_SUITE_P(On, suite, ::testing::Values(&::attention::testing::Tested()), \
                           ::attention::testing::NameOfTested)
