#include "tests/support/backend_checks.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "tests/support/tolerance.h"

namespace attention::testing {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

std::vector<std::int64_t> RowsThatSee(const AttentionTask& task, std::int64_t key) {
  std::vector<std::int64_t> rows;
  for (std::int64_t query = 0; query < task.q_len; ++query) {
    const VisibleKeys keys = VisibleKeysOf(task, task.position(query));
    bool is_visible = (keys.begin <= key && key < keys.end) || key < keys.sink_end;
    if (task.mask.data != nullptr) {
      is_visible &= task.mask.data[query * task.mask.row_stride + key * task.mask.key_stride] != 0;
    }
    for (int head = 0; is_visible && head < task.params.num_q_heads; ++head) {
      rows.push_back(query * task.params.num_q_heads + head);
    }
  }
  return rows;
}

}  // namespace

DType RowTypeFor(DType kv_dtype) { return HasRowScales(kv_dtype) ? DType::kBFloat16 : kv_dtype; }

void ExpectParityOf(AttentionBackend& backend, const AttentionProblem& problem,
                    const Expectation& expected, std::int64_t page_size) {
  SCOPED_TRACE(backend.KernelName(problem.task()));
  const TaskOutput contiguous = RunTask(backend, problem.task());
  EXPECT_EQ(FindMismatch(expected, contiguous), "");
  const PagedKv paged(backend, problem, {.page_size = page_size, .seed = problem.spec().seed});
  EXPECT_TRUE(SameBits(contiguous, RunTask(backend, paged.Task(problem))))
      << "pages of " << page_size << " give other bits";
}

void ExpectParity(AttentionBackend& backend, const ProblemSpec& spec, std::int64_t page_size) {
  SCOPED_TRACE(spec.Describe());
  const AttentionProblem problem(spec);
  ExpectParityOf(backend, problem, MakeExpectation(problem), page_size);
}

Batch::Batch(const std::vector<ProblemSpec>& specs, bool wants_column_sums) {
  for (const ProblemSpec& spec : specs) {
    AttentionTask task = problems_.emplace_back(spec).task();
    TaskOutput& output = outputs_.emplace_back(task.params, task.q_len, task.kv_len);
    output.wants_column_sums = wants_column_sums;
    output.BindTo(&task);
    tasks_.push_back(task);
  }
}

void Batch::ExpectBitsOf(const Batch& other) const {
  for (std::size_t i = 0; i < outputs_.size(); ++i) {
    SCOPED_TRACE(problems_[i].spec().Describe());
    EXPECT_TRUE(SameBits(outputs_[i], other.outputs_[i]));
    if (!outputs_[i].wants_column_sums) continue;
    EXPECT_EQ(outputs_[i].column_sums, other.outputs_[i].column_sums);
  }
}

AttentionTask RowsOf(const AttentionTask& task, std::int64_t begin, std::int64_t end) {
  const auto shifted = [begin](const auto& rows) {
    return static_cast<const char*>(rows.data) +
           begin * rows.row_stride * static_cast<std::int64_t>(DTypeBytes(rows.dtype));
  };
  AttentionTask part = task;
  part.q.data = shifted(task.q);
  if (task.bias.data != nullptr) part.bias.data = shifted(task.bias);
  if (task.mask.data != nullptr) part.mask.data += begin * task.mask.row_stride;
  part.q_len = end - begin;
  part.first_query_position = task.position(begin);
  return part;
}

bool HoldsRows(const TaskOutput& whole, const TaskOutput& part, std::int64_t begin) {
  const std::size_t row_bytes = whole.num_q_heads * whole.head_dim_v * DTypeBytes(whole.dtype);
  return std::memcmp(whole.o_bytes.data() + begin * row_bytes, part.o_bytes.data(),
                     part.o_count * DTypeBytes(part.dtype)) == 0 &&
         std::memcmp(whole.lse.data() + begin * whole.num_q_heads, part.lse.data(),
                     part.lse.size() * sizeof(float)) == 0;
}

void ExpectBitsOfRowsOneByOne(const std::vector<TargetBackend>& targets, const ProblemSpec& spec) {
  SCOPED_TRACE(spec.Describe());
  const AttentionProblem problem(spec);
  for (const TargetBackend& target : targets) {
    const TaskOutput whole = RunTask(*target.backend, problem.task());
    for (std::int64_t row = 0; row < spec.q_len; ++row) {
      const TaskOutput part = RunTask(*target.backend, RowsOf(problem.task(), row, row + 1));
      ASSERT_TRUE(HoldsRows(whole, part, row)) << target.name << " row " << row;
    }
  }
}

void ExpectBitsOfChunks(AttentionBackend& backend, const ProblemSpec& spec,
                        const std::vector<std::int64_t>& cuts) {
  SCOPED_TRACE(spec.Describe());
  const AttentionProblem problem(spec);
  const PagedKv paged(backend, problem, {.page_size = 64});
  const TaskOutput whole = RunTask(backend, paged.Task(problem));
  for (std::size_t i = 0; i + 1 < cuts.size(); ++i) {
    AttentionTask task = RowsOf(paged.Task(problem), cuts[i], cuts[i + 1]);
    task.kv_len = cuts[i + 1];
    EXPECT_TRUE(HoldsRows(whole, RunTask(backend, task), cuts[i])) << "rows from " << cuts[i];
  }
}

void ExpectBitsOfBFloat16Rows(AttentionBackend& backend, const ProblemSpec& spec) {
  SCOPED_TRACE(spec.Describe());
  const AttentionProblem problem(spec);
  AttentionTask stored = problem.StoredTask();
  stored.params.kv_dtype = DType::kBFloat16;
  EXPECT_TRUE(SameBits(RunTask(backend, stored), RunTask(backend, problem.task())));
}

std::vector<std::int64_t> NonFiniteRows(const TaskOutput& output) {
  std::vector<std::int64_t> rows;
  for (std::size_t row = 0; row < output.lse.size(); ++row) {
    bool is_finite = std::isfinite(output.lse[row]);
    for (std::int64_t i = 0; i < output.head_dim_v; ++i) {
      is_finite &= std::isfinite(output.o(static_cast<std::int64_t>(row) * output.head_dim_v + i));
    }
    if (!is_finite) rows.push_back(static_cast<std::int64_t>(row));
  }
  return rows;
}

bool SameBitsOutside(const TaskOutput& a, const TaskOutput& b,
                     const std::vector<std::int64_t>& rows) {
  const std::size_t row_bytes = a.head_dim_v * DTypeBytes(a.dtype);
  for (std::size_t row = 0; row < a.lse.size(); ++row) {
    if (std::binary_search(rows.begin(), rows.end(), static_cast<std::int64_t>(row))) continue;
    if (std::memcmp(a.o_bytes.data() + row * row_bytes, b.o_bytes.data() + row * row_bytes,
                    row_bytes) != 0 ||
        a.lse[row] != b.lse[row]) {
      return false;
    }
  }
  return true;
}

void ExpectInvisibleKeysNeverMatter(AttentionBackend& backend, const ProblemSpec& spec) {
  SCOPED_TRACE(spec.Describe());
  const AttentionProblem clean(spec);
  const TaskOutput expected = RunTask(backend, clean.task());
  for (std::int64_t key : {spec.kv_len - 1, spec.kv_len - 9, spec.kv_len / 2 + 3}) {
    const std::vector<std::int64_t> seeing = RowsThatSee(clean.task(), key);
    for (float poison : {kNaN, kInf, -kInf}) {
      AttentionProblem poisoned(spec);
      for (int head = 0; head < spec.num_kv_heads; ++head) {
        poisoned.SetKey(key, head, 3, kNaN);
        for (int i = 0; i < spec.head_dim_v; ++i) poisoned.SetValue(key, head, i, poison);
      }
      const TaskOutput result = RunTask(backend, poisoned.task());
      EXPECT_EQ(NonFiniteRows(result), seeing);
      EXPECT_TRUE(SameBitsOutside(expected, result, seeing)) << "key " << key;
    }
  }
}

void ExpectAnInfiniteValueStaysInItsChannel(AttentionBackend& backend, const ProblemSpec& spec,
                                            std::int64_t key) {
  SCOPED_TRACE(spec.Describe());
  constexpr int kHead = 1, kChannel = 9;
  const AttentionProblem clean(spec);
  AttentionProblem infinite(spec);
  infinite.SetValue(key, kHead, kChannel, kInf);
  const TaskOutput expected = RunTask(backend, clean.task());
  const TaskOutput result = RunTask(backend, infinite.task());
  const int group = spec.num_q_heads / spec.num_kv_heads;
  const std::vector<std::int64_t> seeing = RowsThatSee(clean.task(), key);
  for (std::int64_t row = 0; row < spec.q_len * spec.num_q_heads; ++row) {
    const bool sees = std::find(seeing.begin(), seeing.end(), row) != seeing.end() &&
                      row % spec.num_q_heads / group == kHead;
    for (int i = 0; i < spec.head_dim_v; ++i) {
      const std::int64_t index = row * spec.head_dim_v + i;
      ASSERT_EQ(result.o(index), sees && i == kChannel ? kInf : expected.o(index))
          << "row " << row << " channel " << i;
    }
  }
}

}  // namespace attention::testing
