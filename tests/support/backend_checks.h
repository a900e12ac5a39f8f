// Checks of any backend: results against float64, bits that stay the same, bytes that
// never matter.
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "tests/support/attention_problem.h"
#include "tests/support/cpu_targets.h"
#include "tests/support/tolerance.h"

namespace attention::testing {

// Queries and outputs of the type that the matrix instructions take beside a cache of that type.
DType RowTypeFor(DType kv_dtype);

// The backend's result against float64. Contiguous keys and pages of `page_size` tokens, in an
// order drawn from the problem's seed, must agree to the bit.
void ExpectParity(AttentionBackend& backend, const ProblemSpec& spec, std::int64_t page_size);
// The same of a problem whose expectation is there.
void ExpectParityOf(AttentionBackend& backend, const AttentionProblem& problem,
                    const Expectation& expected, std::int64_t page_size);

// Tasks with their tensors and outputs; the same specs give the same tasks.
class Batch {
 public:
  explicit Batch(const std::vector<ProblemSpec>& specs, bool wants_column_sums = false);

  const std::vector<AttentionTask>& tasks() const { return tasks_; }
  void ExpectBitsOf(const Batch& other) const;

 private:
  std::deque<AttentionProblem> problems_;
  std::deque<TaskOutput> outputs_;
  std::vector<AttentionTask> tasks_;
};

// Queries [begin, end) of a task, at their positions.
AttentionTask RowsOf(const AttentionTask& task, std::int64_t begin, std::int64_t end);

// True if `part` holds the bits of rows [begin, ...) of `whole`.
bool HoldsRows(const TaskOutput& whole, const TaskOutput& part, std::int64_t begin);

// Each row alone has the bits that it has among all rows of the problem.
void ExpectBitsOfRowsOneByOne(const std::vector<TargetBackend>& targets, const ProblemSpec& spec);

// A cache that grows chunk by chunk: queries [cuts[i], cuts[i + 1]) attend with the kv_len they
// had. Each must have the bits of the whole. The problem has as many queries as keys.
void ExpectBitsOfChunks(AttentionBackend& backend, const ProblemSpec& spec,
                        const std::vector<std::int64_t>& cuts);

// A cache of float8_e4m3 gives the bits of a cache of bfloat16 with the rows that it holds: its
// scales are powers of two, which change no rounding.
void ExpectBitsOfBFloat16Rows(AttentionBackend& backend, const ProblemSpec& spec);

// The rows (query * num_q_heads + head) with a NaN or infinity in o or lse.
std::vector<std::int64_t> NonFiniteRows(const TaskOutput& output);

bool SameBitsOutside(const TaskOutput& a, const TaskOutput& b,
                     const std::vector<std::int64_t>& rows);

// Keys at the end and in the middle, one at a time, are NaN or infinite in a second copy of the
// problem. Rows that see the key are no longer finite, all others keep their bits.
void ExpectInvisibleKeysNeverMatter(AttentionBackend& backend, const ProblemSpec& spec);

// An infinite value in one channel, beside a finite key: that channel of the rows that see it is
// infinite, everything else keeps its bits. The spec is causal, with as many queries as keys.
void ExpectAnInfiniteValueStaysInItsChannel(AttentionBackend& backend, const ProblemSpec& spec,
                                            std::int64_t key);

}  // namespace attention::testing
