#include "kernels/api/validate.h"

#include <cmath>

#include "absl/strings/str_cat.h"

namespace attention {
namespace {

absl::Status Invalid(const char* field, const std::string& actual, const std::string& expected) {
  return absl::InvalidArgumentError(absl::StrCat(field, " is ", actual, ", expected ", expected));
}

absl::Status CheckRange(const char* field, std::int64_t value, std::int64_t min, std::int64_t max) {
  if (value >= min && value <= max) return absl::OkStatus();
  return Invalid(field, absl::StrCat(value), absl::StrCat(min, " to ", max));
}

absl::Status ValidateLengths(const AttentionTask& task) {
  if (auto s = CheckRange("q_len", task.q_len, 0, kMaxPosition); !s.ok()) return s;
  if (auto s = CheckRange("kv_len", task.kv_len, 0, kMaxPosition); !s.ok()) return s;
  if (auto s = CheckRange("kv_begin", task.kv_begin, 0, task.kv_len); !s.ok()) return s;
  return CheckRange("first_query_position", task.first_query_position, -kMaxPosition, kMaxPosition);
}

absl::Status ValidateTree(const AttentionTask& task) {
  const DraftTreeView& tree = task.tree;
  if (task.params.is_tree != tree.has_rows()) {
    return Invalid("tree", tree.has_rows() ? "given" : "missing",
                   "it with params.is_tree, and only then");
  }
  if (!tree.has_rows()) return absl::OkStatus();
  if (tree.depths == nullptr) return Invalid("tree.depths", "missing", "one for each row");
  if (tree.words_per_row * 64 < task.q_len) {
    return Invalid("tree.words_per_row", absl::StrCat(tree.words_per_row),
                   absl::StrCat("a bit for each of ", task.q_len, " rows"));
  }
  if (auto s =
          CheckRange("first_query_position", task.first_query_position, task.kv_begin, task.kv_len);
      !s.ok()) {
    return s;
  }
  if (task.kv_len - task.first_query_position == task.q_len) return absl::OkStatus();
  return Invalid(
      "kv_len", absl::StrCat(task.kv_len),
      absl::StrCat(task.first_query_position + task.q_len, ", as each row of a tree has a key"));
}

absl::Status ValidatePageSize(std::int64_t page_size) {
  if (page_size >= kPageGranularity && page_size % kPageGranularity == 0) return absl::OkStatus();
  return Invalid("page_size", absl::StrCat(page_size),
                 absl::StrCat("a positive multiple of ", kPageGranularity));
}

absl::Status ValidatePages(const AttentionTask& task) {
  const PagedKvView& kv = task.kv_pages;
  if (auto s = ValidatePageSize(kv.page_size); !s.ok()) return s;
  if (kv.num_pages * kv.page_size < task.kv_len) {
    return Invalid(
        "kv_len", absl::StrCat(task.kv_len),
        absl::StrCat("at most the ", kv.num_pages * kv.page_size, " tokens that the pages hold"));
  }
  return absl::OkStatus();
}

// Only caches hold types with row scales.
absl::Status ValidateRows(const char* field, DType dtype) {
  if (!HasRowScales(dtype)) return absl::OkStatus();
  return Invalid(field, absl::StrCat("rows of ", std::string(DTypeName(dtype))),
                 "float32, float16 or bfloat16");
}

absl::Status ValidateOutput(const AttentionTask& task) {
  if (task.q_len == 0) return absl::OkStatus();
  if (task.o.data == nullptr) return Invalid("o", "missing", "a buffer");
  return ValidateRows("o", task.o.dtype);
}

absl::Status ExpectNoValues(bool are_missing) {
  if (are_missing) return absl::OkStatus();
  return Invalid("v", "given", "none, as values are prefixes of the keys");
}

absl::Status ValidateTensors(const AttentionTask& task) {
  if (task.q_len == 0) return absl::OkStatus();
  if (auto s = ValidateRows("q", task.q.dtype); !s.ok()) return s;
  if (task.q.data == nullptr) return Invalid("q", "missing", "a tensor");
  if (task.kv_len == 0 || task.kv_pages.pages != nullptr) return absl::OkStatus();
  if (task.k.data == nullptr) return Invalid("k", "missing", "a tensor");
  if (auto s = ValidateRows("k", task.k.dtype); !s.ok()) return s;
  if (task.params.value_is_key_prefix) return ExpectNoValues(task.v.data == nullptr);
  if (task.v.data == nullptr) return Invalid("v", "missing", "a tensor");
  return ValidateRows("v", task.v.dtype);
}

absl::Status ValidateInputs(const AttentionTask& task) {
  if (auto s = ValidateParams(task.params); !s.ok()) return s;
  if (auto s = ValidateLengths(task); !s.ok()) return s;
  if (auto s = ValidateTree(task); !s.ok()) return s;
  if (task.kv_pages.pages != nullptr) {
    if (auto s = ValidatePages(task); !s.ok()) return s;
  }
  return ValidateTensors(task);
}

template <typename Task>
absl::Status ValidateEach(std::span<const Task> tasks, absl::Status (*validate)(const Task& task)) {
  for (std::size_t i = 0; i < tasks.size(); ++i) {
    if (absl::Status status = validate(tasks[i]); !status.ok()) {
      return absl::Status(status.code(), absl::StrCat("task ", i, ": ", status.message()));
    }
  }
  return absl::OkStatus();
}

absl::Status ValidateAppendRows(const std::string& field, const RowsView& rows,
                                std::span<const RowsPiece> pieces, std::int64_t num_tokens) {
  if (pieces.empty()) {
    if (rows.data == nullptr) return absl::InvalidArgumentError(absl::StrCat(field, " is missing"));
    return ValidateRows(field.c_str(), rows.dtype);
  }
  std::int64_t least = 0;
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    const std::string piece = absl::StrCat(field, "_pieces[", i, "]");
    const std::int64_t begin = pieces[i].begin_row;
    if (i == 0 ? begin != 0 : begin < least || begin >= num_tokens) {
      return Invalid(absl::StrCat(piece, ".begin_row").c_str(), absl::StrCat(begin),
                     i == 0 ? "0" : absl::StrCat(least, " to ", num_tokens - 1));
    }
    least = begin + 1;
    if (pieces[i].rows.data == nullptr) {
      return absl::InvalidArgumentError(absl::StrCat(piece, " is missing"));
    }
    if (auto s = ValidateRows(piece.c_str(), pieces[i].rows.dtype); !s.ok()) return s;
  }
  return absl::OkStatus();
}

absl::Status ValidateGeometry(const KvGeometry& geometry) {
  AttentionParams params;
  params.num_q_heads = params.num_kv_heads = geometry.num_kv_heads;
  params.head_dim_qk = geometry.head_dim_qk;
  params.head_dim_v = geometry.head_dim_v;
  params.value_is_key_prefix = geometry.value_is_key_prefix;
  return ValidateHeads(params);
}

absl::Status ValidateTokens(const PagedKvView& pages, std::int64_t position,
                            std::int64_t num_tokens) {
  if (auto s = ValidatePageSize(pages.page_size); !s.ok()) return s;
  if (position < 0 || num_tokens < 0 || num_tokens > pages.num_pages * pages.page_size - position) {
    return absl::InvalidArgumentError(absl::StrCat("tokens are [", position, ", ", position, " + ",
                                                   num_tokens, "), expected a part of [0, ",
                                                   pages.num_pages * pages.page_size, ")"));
  }
  if (num_tokens > 0 && pages.pages == nullptr) {
    return absl::InvalidArgumentError("pages are missing");
  }
  return absl::OkStatus();
}

absl::Status ValidateStoredRowsTask(const StoredRowsTask& task) {
  const KvGeometry& geometry = task.geometry;
  if (auto s = ValidateGeometry(geometry); !s.ok()) return s;
  if (auto s = ValidateTokens(task.pages, task.position, task.num_tokens); !s.ok()) return s;
  if (task.num_tokens == 0) return absl::OkStatus();
  const bool has_scales = HasRowScales(geometry.dtype);
  const bool has_values = !geometry.value_is_key_prefix;
  if (task.rows.k == nullptr) return Invalid("k", "missing", "rows");
  if (has_values && task.rows.v == nullptr) return Invalid("v", "missing", "rows");
  if (has_scales && task.rows.k_scales == nullptr) return Invalid("k_scales", "missing", "scales");
  if (has_scales && has_values && task.rows.v_scales == nullptr) {
    return Invalid("v_scales", "missing", "scales");
  }
  return absl::OkStatus();
}

absl::Status ValidateMove(const MoveTokensTask& task) {
  const auto count = static_cast<std::int64_t>(task.tokens.size());
  if (auto s = ValidateGeometry(task.geometry); !s.ok()) return s;
  if (auto s = CheckRange("kv_head", task.kv_head, 0, task.geometry.num_kv_heads - 1); !s.ok()) {
    return s;
  }
  if (auto s = ValidateTokens(task.to, task.position, count); !s.ok()) return s;
  if (auto s = ValidateTokens(task.from, 0, 0); !s.ok()) return s;
  const std::int64_t capacity = task.from.num_pages * task.from.page_size;
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t token = task.tokens[i];
    const std::int64_t least = i == 0 ? 0 : task.tokens[i - 1] + 1;
    if (token < least || token >= capacity) {
      return Invalid(absl::StrCat("tokens[", i, "]").c_str(), absl::StrCat(token),
                     absl::StrCat(least, " to ", capacity - 1));
    }
    const std::int64_t place = task.position + i;
    const std::int64_t from_page = token / task.from.page_size;
    if (token < place && place / task.to.page_size < task.to.num_pages &&
        task.from.pages[from_page] == task.to.pages[place / task.to.page_size]) {
      return Invalid(absl::StrCat("tokens[", i, "]").c_str(), absl::StrCat(token),
                     absl::StrCat("at least ", place, ", its place in the same page"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ValidateHeads(const AttentionParams& params) {
  if (auto s = CheckRange("num_q_heads", params.num_q_heads, 1, kMaxHeads); !s.ok()) return s;
  if (auto s = CheckRange("num_kv_heads", params.num_kv_heads, 1, kMaxHeads); !s.ok()) return s;
  if (params.num_q_heads % params.num_kv_heads != 0) {
    return Invalid("num_q_heads", absl::StrCat(params.num_q_heads),
                   absl::StrCat("a multiple of num_kv_heads (", params.num_kv_heads, ")"));
  }
  if (auto s = CheckRange("head_dim_qk", params.head_dim_qk, 1, kMaxHeadDimQk); !s.ok()) return s;
  if (auto s = CheckRange("head_dim_v", params.head_dim_v, 1, kMaxHeadDimV); !s.ok()) return s;
  if (!params.value_is_key_prefix || params.head_dim_v <= params.head_dim_qk) {
    return absl::OkStatus();
  }
  return Invalid("head_dim_v", absl::StrCat(params.head_dim_v),
                 absl::StrCat("1 to head_dim_qk (", params.head_dim_qk,
                              "), as values are prefixes of the keys"));
}

absl::Status ValidateScores(const AttentionParams& params) {
  if (!std::isfinite(params.softmax_scale)) {
    return Invalid("softmax_scale", absl::StrCat(params.softmax_scale), "a finite number");
  }
  if (!std::isfinite(params.soft_cap) || params.soft_cap < 0.0f) {
    return Invalid("soft_cap", absl::StrCat(params.soft_cap), "0 (none) or a finite number above");
  }
  if (auto s = CheckRange("window_left", params.window_left, -1, kMaxPosition); !s.ok()) return s;
  if (auto s = CheckRange("window_right", params.window_right, -1, kMaxPosition); !s.ok()) return s;
  return CheckRange("sink_tokens", params.sink_tokens, 0, kMaxPosition);
}

absl::Status ValidateParams(const AttentionParams& params) {
  if (auto s = ValidateHeads(params); !s.ok()) return s;
  return ValidateScores(params);
}

absl::Status ValidateTask(const AttentionTask& task) {
  if (auto s = ValidateInputs(task); !s.ok()) return s;
  return ValidateOutput(task);
}

absl::Status ValidateTasks(std::span<const AttentionTask> tasks) {
  return ValidateEach(tasks, &ValidateTask);
}

absl::Status ValidateWeights(const WeightsTask& task) {
  if (auto s = ValidateInputs(task.attention); !s.ok()) return s;
  if (task.q_begin < 0 || task.q_begin > task.q_end || task.q_end > task.attention.q_len) {
    return absl::InvalidArgumentError(absl::StrCat("rows are [", task.q_begin, ", ", task.q_end,
                                                   "), expected a part of [0, ",
                                                   task.attention.q_len, ")"));
  }
  if (task.weights == nullptr && task.q_begin < task.q_end && task.attention.kv_len > 0) {
    return Invalid("weights", "missing", "a buffer");
  }
  return absl::OkStatus();
}

absl::Status ValidateAppend(const KvAppendTask& task) {
  const KvGeometry& geometry = task.geometry;
  if (auto s = ValidateGeometry(geometry); !s.ok()) return s;
  if (auto s = ValidateTokens(task.destination, task.position, task.num_tokens); !s.ok()) return s;
  if (task.num_tokens == 0) return absl::OkStatus();
  if (auto s = ValidateAppendRows("k", task.k, task.k_pieces, task.num_tokens); !s.ok()) return s;
  if (geometry.value_is_key_prefix) {
    return ExpectNoValues(task.v.data == nullptr && task.v_pieces.empty());
  }
  return ValidateAppendRows("v", task.v, task.v_pieces, task.num_tokens);
}

absl::Status ValidateAppends(std::span<const KvAppendTask> tasks) {
  return ValidateEach(tasks, &ValidateAppend);
}

absl::Status ValidateStoredRows(std::span<const StoredRowsTask> tasks) {
  return ValidateEach(tasks, &ValidateStoredRowsTask);
}

absl::Status ValidateMoves(std::span<const MoveTokensTask> tasks) {
  return ValidateEach(tasks, &ValidateMove);
}

}  // namespace attention
