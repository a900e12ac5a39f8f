// Attention problems for tests: a description with good defaults, and the random tensors made from
// it. The same seed gives the same tensors everywhere.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kernels/api/attention_backend.h"

namespace attention::testing {

// The shape of a bias or mask: [1, q, kv], [heads, q, kv], [1, 1, kv], [1, q, 1] or [heads, 1, 1].
enum class BiasOrMask { kNone, kShared, kPerHead, kKeys, kQueries, kHeads };

struct ProblemSpec {
  int num_q_heads = 4;
  int num_kv_heads = 2;
  int head_dim_qk = 32;
  int head_dim_v = 32;
  DType dtype = DType::kFloat32;     // of q and o
  DType kv_dtype = DType::kFloat32;  // as stored
  // As given; unless set kv_dtype, or float32 where that has row scales.
  std::optional<DType> kv_row_dtype = {};
  bool value_is_key_prefix = false;
  std::int64_t q_len = 7;
  std::int64_t kv_len = 50;
  std::int64_t kv_begin = 0;
  std::optional<std::int64_t> first_query_position = {};  // kv_len - q_len unless set
  bool is_causal = false;
  std::int64_t window_left = -1;
  std::int64_t window_right = -1;
  std::int64_t sink_tokens = 0;
  float soft_cap = 0;
  bool has_alibi = false;
  bool has_sink_logits = false;
  BiasOrMask bias = BiasOrMask::kNone;
  DType bias_dtype = DType::kFloat32;
  BiasOrMask mask = BiasOrMask::kNone;
  // The row that each row follows, -1: none; a tree of drafts, of q_len rows. Empty: there is none.
  std::vector<int> parents = {};
  bool is_misaligned = false;  // data pointers one byte past an aligned address
  float magnitude = 1;         // standard deviation of q and k
  std::uint32_t seed = 1;

  DType row_dtype() const {
    return kv_row_dtype.value_or(HasRowScales(kv_dtype) ? DType::kFloat32 : kv_dtype);
  }
  std::string Describe() const;
};

// Bytes at an address that is a multiple of 64 plus `shift`.
class ShiftedBytes {
 public:
  ShiftedBytes() = default;
  ShiftedBytes(std::size_t bytes, std::size_t shift) : storage_(bytes + 128), shift_(shift) {}
  char* data() {
    const auto start = reinterpret_cast<std::uintptr_t>(storage_.data());
    return storage_.data() + ((start + 63) / 64 * 64 - start) + shift_;
  }

 private:
  std::vector<char> storage_;
  std::size_t shift_ = 0;
};

// The outputs of one task, which start out as NaN.
struct TaskOutput {
  TaskOutput(const AttentionParams& params, std::int64_t q_len, std::int64_t kv_len,
             std::size_t shift = 0);
  void BindTo(AttentionTask* task);
  float o(std::int64_t index) const;

  DType dtype;
  std::int64_t o_count;
  std::int64_t num_q_heads;
  std::int64_t head_dim_v;
  mutable ShiftedBytes o_bytes;
  std::vector<float> lse;
  std::vector<float> column_sums;
  bool wants_column_sums = false;
};

// True if outputs and lse have the same bits.
bool SameBits(const TaskOutput& a, const TaskOutput& b);

class AttentionProblem {
 public:
  explicit AttentionProblem(const ProblemSpec& spec);
  AttentionProblem(const AttentionProblem&) = delete;

  const ProblemSpec& spec() const { return spec_; }
  // Contiguous, without outputs.
  const AttentionTask& task() const { return task_; }
  // The same, but keys and values are float32 copies of what a cache of kv_dtype would hold; values
  // that are prefixes of their keys are given, too.
  AttentionTask StoredTask() const;

  // Tensors for tests that change single elements. Indices are [row][head][dim].
  void SetQuery(std::int64_t row, int head, int dim, float value);
  void SetKey(std::int64_t row, int head, int dim, float value);
  void SetValue(std::int64_t row, int head, int channel,
                float value);  // may be an element of a key
  std::vector<std::uint8_t>& mask() { return mask_; }
  // The rows of the path that leads to a row of a tree, itself the last.
  std::vector<std::int64_t> PathTo(std::int64_t row) const;

 private:
  void Store(ShiftedBytes* bytes, DType dtype, const std::vector<float>& values);
  void MakeTree();

  ProblemSpec spec_;
  ShiftedBytes q_, k_, v_, bias_;
  std::vector<float> stored_k_, stored_v_;
  std::vector<float> alibi_slopes_, sink_logits_;
  std::vector<std::uint8_t> mask_;
  std::vector<std::uint64_t> ancestors_;
  std::vector<std::int32_t> depths_;
  AttentionTask task_;
};

// The value after storing it in `dtype`.
float Rounded(DType dtype, float value);

struct PagingSpec {
  std::int64_t page_size = 64;
  std::uint32_t seed = 1;          // order of the pages in memory
  std::uint8_t poison = 0xff;      // fills pages before tokens are written: NaN in every type
  std::int64_t append_tokens = 0;  // tokens of each append; 0: all at once
};

// The problem's keys and values in pages of a backend, in memory of its allocator, which must be
// the host's too. The backend must outlive it. Page table entries past the last needed one
// are an address that must not be read.
class PagedKv {
 public:
  PagedKv(AttentionBackend& backend, const AttentionProblem& problem, const PagingSpec& spec);

  AttentionTask Task(const AttentionProblem& problem) const;
  char* page(std::int64_t index) { return static_cast<char*>(table_[index]); }
  std::vector<void*>& table() { return table_; }
  std::size_t page_bytes() const { return page_bytes_; }

 private:
  PagingSpec spec_;
  std::size_t page_bytes_ = 0;
  std::shared_ptr<char> memory_;
  std::vector<void*> table_;
};

// Plans and runs tasks; fails the test on an error.
void RunTasks(AttentionBackend& backend, const std::vector<AttentionTask>& tasks);

// Runs one task into a new output.
TaskOutput RunTask(AttentionBackend& backend, AttentionTask task);

}  // namespace attention::testing
