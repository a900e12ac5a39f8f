#include "tests/support/attention_problem.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>
#include <span>
#include <sstream>

#include "kernels/api/quantized_row.h"

namespace attention::testing {
namespace {

std::vector<float> RandomNormal(std::mt19937& random, std::size_t count, float deviation) {
  std::normal_distribution<float> normal(0.0f, deviation);
  std::vector<float> values(count);
  for (float& value : values) value = normal(random);
  return values;
}

// Rounds rows of `dim` as a cache of a type with row scales does.
void QuantizeRows(DType dtype, int dim, std::vector<float>* values) {
  for (std::size_t begin = 0; begin < values->size(); begin += dim) {
    const std::span<float> row(values->data() + begin, dim);
    float max = 0;
    for (float x : row) max = std::max(max, std::abs(x));
    const RowScale scale = RowScale::Of(dtype, max);
    for (float& x : row) {
      x = DequantizedElement(dtype, QuantizedElement(dtype, x, scale), scale.scale);
    }
  }
}

// Rows as a cache of `second` holds them when they come as `first`.
std::vector<float> RoundedCopy(std::vector<float> values, int dim, DType first, DType second) {
  for (float& value : values) value = Rounded(first, value);
  if (HasRowScales(second)) {
    QuantizeRows(second, dim, &values);
  } else {
    for (float& value : values) value = Rounded(second, value);
  }
  return values;
}

const char* NameOf(BiasOrMask kind) {
  constexpr const char* kNames[] = {"none", "shared",    "per head",
                                    "keys", "per query", "one a head"};
  return kNames[static_cast<int>(kind)];
}

// Dense; the strides of axes of 1 are 0.
struct BiasOrMaskLayout {
  BiasOrMaskLayout(const ProblemSpec& spec, BiasOrMask kind) {
    const bool has_heads = kind == BiasOrMask::kPerHead || kind == BiasOrMask::kHeads;
    const bool has_rows = kind != BiasOrMask::kKeys && kind != BiasOrMask::kHeads;
    const bool has_keys = kind != BiasOrMask::kQueries && kind != BiasOrMask::kHeads;
    const std::int64_t keys = has_keys ? spec.kv_len : 1;
    const std::int64_t rows = has_rows ? spec.q_len : 1;
    elements = (has_heads ? spec.num_q_heads : 1) * rows * keys;
    head_stride = has_heads ? rows * keys : 0;
    row_stride = has_rows ? keys : 0;
    key_stride = has_keys ? 1 : 0;
  }
  std::int64_t elements, head_stride, row_stride, key_stride;
};

}  // namespace

float Rounded(DType dtype, float value) {
  std::uint32_t bytes = 0;
  StoreElement(&bytes, dtype, 0, value);
  return LoadElement(&bytes, dtype, 0);
}

std::string ProblemSpec::Describe() const {
  std::ostringstream out;
  out << "heads " << num_q_heads << "/" << num_kv_heads << " dims " << head_dim_qk << "/"
      << head_dim_v << " q_len " << q_len << " kv_len " << kv_len << " kv_begin " << kv_begin << " "
      << DTypeName(dtype) << " kv " << DTypeName(kv_dtype) << " rows " << DTypeName(row_dtype());
  if (first_query_position) out << " first_query_position " << *first_query_position;
  if (is_causal) out << " causal";
  if (window_left >= 0 || window_right >= 0) {
    out << " window " << window_left << "," << window_right << " sinks " << sink_tokens;
  }
  if (soft_cap > 0) out << " soft_cap " << soft_cap;
  if (has_alibi) out << " alibi";
  if (has_sink_logits) out << " sink_logits";
  if (bias != BiasOrMask::kNone) out << " bias " << NameOf(bias) << " " << DTypeName(bias_dtype);
  if (mask != BiasOrMask::kNone) out << " mask " << NameOf(mask);
  if (is_misaligned) out << " misaligned";
  if (value_is_key_prefix) out << " latent";
  if (!parents.empty()) out << " tree";
  out << " seed " << seed;
  return out.str();
}

TaskOutput::TaskOutput(const AttentionParams& params, std::int64_t q_len, std::int64_t kv_len,
                       std::size_t shift)
    : dtype(params.dtype),
      o_count(q_len * params.num_q_heads * params.head_dim_v),
      num_q_heads(params.num_q_heads),
      head_dim_v(params.head_dim_v),
      o_bytes(o_count * DTypeBytes(params.dtype), shift),
      lse(q_len * params.num_q_heads, std::numeric_limits<float>::quiet_NaN()),
      column_sums(kv_len * params.num_q_heads, std::numeric_limits<float>::quiet_NaN()) {
  std::memset(o_bytes.data(), 0xff, o_count * DTypeBytes(dtype));
}

void TaskOutput::BindTo(AttentionTask* task) {
  task->o = DenseRows(static_cast<void*>(o_bytes.data()), dtype, num_q_heads, head_dim_v);
  task->lse = lse.data();
  if (wants_column_sums) task->column_sums = column_sums.data();
}

float TaskOutput::o(std::int64_t index) const { return LoadElement(o_bytes.data(), dtype, index); }

bool SameBits(const TaskOutput& a, const TaskOutput& b) {
  if (a.o_count != b.o_count || a.dtype != b.dtype || a.lse.size() != b.lse.size()) return false;
  if (a.o_count == 0) return true;
  return std::memcmp(a.o_bytes.data(), b.o_bytes.data(), a.o_count * DTypeBytes(a.dtype)) == 0 &&
         std::memcmp(a.lse.data(), b.lse.data(), a.lse.size() * sizeof(float)) == 0;
}

void AttentionProblem::Store(ShiftedBytes* bytes, DType dtype, const std::vector<float>& values) {
  *bytes = ShiftedBytes(values.size() * DTypeBytes(dtype), spec_.is_misaligned ? 1 : 0);
  for (std::size_t i = 0; i < values.size(); ++i) StoreElement(bytes->data(), dtype, i, values[i]);
}

AttentionProblem::AttentionProblem(const ProblemSpec& spec) : spec_(spec) {
  std::mt19937 random(spec.seed);
  const DType row_dtype = spec.row_dtype();
  const auto q =
      RandomNormal(random, spec.q_len * spec.num_q_heads * spec.head_dim_qk, spec.magnitude);
  const auto k =
      RandomNormal(random, spec.kv_len * spec.num_kv_heads * spec.head_dim_qk, spec.magnitude);
  const auto v = RandomNormal(random, spec.kv_len * spec.num_kv_heads * spec.head_dim_v, 1.0f);
  Store(&q_, spec.dtype, q);
  Store(&k_, row_dtype, k);
  Store(&v_, row_dtype, v);
  stored_k_ = RoundedCopy(k, spec.head_dim_qk, row_dtype, spec.kv_dtype);
  stored_v_ = RoundedCopy(v, spec.head_dim_v, row_dtype, spec.kv_dtype);

  AttentionParams& params = task_.params;
  params.num_q_heads = spec.num_q_heads;
  params.num_kv_heads = spec.num_kv_heads;
  params.head_dim_qk = spec.head_dim_qk;
  params.head_dim_v = spec.head_dim_v;
  params.dtype = spec.dtype;
  params.kv_dtype = spec.kv_dtype;
  params.value_is_key_prefix = spec.value_is_key_prefix;
  params.softmax_scale = DefaultSoftmaxScale(spec.head_dim_qk);
  params.soft_cap = spec.soft_cap;
  params.is_causal = spec.is_causal;
  params.window_left = spec.window_left;
  params.window_right = spec.window_right;
  params.sink_tokens = spec.sink_tokens;
  task_.q_len = spec.q_len;
  task_.kv_len = spec.kv_len;
  task_.kv_begin = spec.kv_begin;
  task_.first_query_position = spec.first_query_position.value_or(spec.kv_len - spec.q_len);
  task_.q = DenseRows(static_cast<const void*>(q_.data()), spec.dtype, spec.num_q_heads,
                      spec.head_dim_qk);
  task_.k = DenseRows(static_cast<const void*>(k_.data()), row_dtype, spec.num_kv_heads,
                      spec.head_dim_qk);
  if (!spec.value_is_key_prefix) {
    task_.v = DenseRows(static_cast<const void*>(v_.data()), row_dtype, spec.num_kv_heads,
                        spec.head_dim_v);
  }
  if (spec.has_alibi) {
    for (int head = 0; head < spec.num_q_heads; ++head) {
      alibi_slopes_.push_back(1.0f / static_cast<float>(2 << head % 8));
    }
    task_.alibi_slopes = alibi_slopes_.data();
  }
  if (spec.has_sink_logits) {
    sink_logits_ = RandomNormal(random, spec.num_q_heads, 1.0f);
    task_.sink_logits = sink_logits_.data();
  }
  if (spec.bias != BiasOrMask::kNone) {
    const BiasOrMaskLayout layout(spec, spec.bias);
    Store(&bias_, spec.bias_dtype, RandomNormal(random, layout.elements, 1.0f));
    task_.bias = {bias_.data(), spec.bias_dtype, layout.head_stride, layout.row_stride,
                  layout.key_stride};
  }
  if (spec.mask != BiasOrMask::kNone) {
    const BiasOrMaskLayout layout(spec, spec.mask);
    mask_.resize(layout.elements);
    for (std::uint8_t& byte : mask_) byte = random() % 3 == 0 ? 0 : 1 + random() % 255;
    task_.mask = {mask_.data(), layout.head_stride, layout.row_stride, layout.key_stride};
  }
  MakeTree();
}

void AttentionProblem::MakeTree() {
  const auto rows = static_cast<std::int64_t>(spec_.parents.size());
  if (rows == 0) return;
  const std::int64_t words = (rows + 63) / 64;
  ancestors_.resize(rows * words);
  for (std::int64_t row = 0; row < rows; ++row) {
    const std::vector<std::int64_t> path = PathTo(row);
    depths_.push_back(static_cast<std::int32_t>(path.size()) - 1);
    for (std::int64_t other : path) {
      ancestors_[row * words + other / 64] |= std::uint64_t{1} << (other % 64);
    }
  }
  task_.params.is_tree = true;
  task_.tree = {ancestors_.data(), words, depths_.data()};
}

std::vector<std::int64_t> AttentionProblem::PathTo(std::int64_t row) const {
  std::vector<std::int64_t> path;
  for (; row >= 0; row = spec_.parents[row]) path.push_back(row);
  std::reverse(path.begin(), path.end());
  return path;
}

AttentionTask AttentionProblem::StoredTask() const {
  AttentionTask task = task_;
  task.params.kv_dtype = DType::kFloat32;
  task.k = DenseRows(static_cast<const void*>(stored_k_.data()), DType::kFloat32,
                     spec_.num_kv_heads, spec_.head_dim_qk);
  task.v = spec_.value_is_key_prefix
               ? task.k
               : DenseRows(static_cast<const void*>(stored_v_.data()), DType::kFloat32,
                           spec_.num_kv_heads, spec_.head_dim_v);
  task.params.value_is_key_prefix = false;
  return task;
}

void AttentionProblem::SetQuery(std::int64_t row, int head, int dim, float value) {
  StoreElement(q_.data(), spec_.dtype, (row * spec_.num_q_heads + head) * spec_.head_dim_qk + dim,
               value);
}

void AttentionProblem::SetKey(std::int64_t row, int head, int dim, float value) {
  const std::int64_t index = (row * spec_.num_kv_heads + head) * spec_.head_dim_qk + dim;
  StoreElement(k_.data(), task_.k.dtype, index, value);
  stored_k_[index] = value;
}

void AttentionProblem::SetValue(std::int64_t row, int head, int channel, float value) {
  if (spec_.value_is_key_prefix) return SetKey(row, head, channel, value);
  const std::int64_t index = (row * spec_.num_kv_heads + head) * spec_.head_dim_v + channel;
  StoreElement(v_.data(), task_.v.dtype, index, value);
  stored_v_[index] = value;
}

PagedKv::PagedKv(AttentionBackend& backend, const AttentionProblem& problem, const PagingSpec& spec)
    : spec_(spec) {
  const AttentionTask& task = problem.task();
  const KvGeometry geometry = task.params.kv_geometry();
  page_bytes_ = backend.PageLayout(geometry, spec.page_size).page_bytes;
  const std::int64_t num_pages = (task.kv_len + spec.page_size - 1) / spec.page_size;
  const std::size_t stride = (page_bytes_ + 63) / 64 * 64;
  const std::size_t bytes = num_pages * stride;
  MemoryAllocator& allocator = backend.memory();
  memory_ = {static_cast<char*>(allocator.Allocate(bytes)),
             [&allocator, bytes](char* memory) { allocator.Free(memory, bytes); }};
  std::memset(memory_.get(), spec.poison, bytes);
  std::vector<int> order(num_pages);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), std::mt19937(spec.seed));
  for (int at : order) table_.push_back(memory_.get() + at * stride);
  // Spare entries: null, and an address in the first page of memory, which is never mapped.
  table_.push_back(nullptr);
  table_.push_back(reinterpret_cast<void*>(64));

  const std::int64_t step = spec.append_tokens > 0 ? spec.append_tokens : task.kv_len;
  for (std::int64_t token = 0; token < task.kv_len; token += step) {
    KvAppendTask append{.geometry = geometry,
                        .destination = {table_.data(), num_pages, spec.page_size},
                        .position = token,
                        .num_tokens = std::min(step, task.kv_len - token),
                        .k = task.k,
                        .v = task.v};
    append.k.data = static_cast<const char*>(task.k.data) +
                    token * task.k.row_stride * DTypeBytes(task.k.dtype);
    append.v.data = static_cast<const char*>(task.v.data) +
                    token * task.v.row_stride * DTypeBytes(task.v.dtype);
    const absl::Status status = backend.AppendKv({&append, 1});
    EXPECT_TRUE(status.ok()) << status;
  }
  // The host, too, may look at the pages now.
  const absl::Status status = backend.SavePages({});
  EXPECT_TRUE(status.ok()) << status;
}

AttentionTask PagedKv::Task(const AttentionProblem& problem) const {
  AttentionTask task = problem.task();
  task.k = {};
  task.v = {};
  task.kv_pages = {table_.data(), static_cast<std::int64_t>(table_.size()), spec_.page_size};
  return task;
}

void RunTasks(AttentionBackend& backend, const std::vector<AttentionTask>& tasks) {
  auto plan = backend.Plan(tasks);
  ASSERT_TRUE(plan.ok()) << plan.status();
  const absl::Status status = backend.Run(**plan);
  ASSERT_TRUE(status.ok()) << status;
}

TaskOutput RunTask(AttentionBackend& backend, AttentionTask task) {
  TaskOutput output(task.params, task.q_len, task.kv_len);
  output.BindTo(&task);
  RunTasks(backend, {task});
  return output;
}

}  // namespace attention::testing
