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

absl::Status ValidateHeads(const AttentionParams& params) {
  if (auto s = CheckRange("num_q_heads", params.num_q_heads, 1, kMaxHeads); !s.ok()) return s;
  if (auto s = CheckRange("num_kv_heads", params.num_kv_heads, 1, kMaxHeads); !s.ok()) return s;
  if (params.num_q_heads % params.num_kv_heads != 0) {
    return Invalid("num_q_heads", absl::StrCat(params.num_q_heads),
                   absl::StrCat("a multiple of num_kv_heads (", params.num_kv_heads, ")"));
  }
  if (auto s = CheckRange("head_dim_qk", params.head_dim_qk, 1, kMaxHeadDim); !s.ok()) return s;
  return CheckRange("head_dim_v", params.head_dim_v, 1, kMaxHeadDim);
}

absl::Status ValidateLengths(const AttentionTask& task) {
  if (auto s = CheckRange("q_len", task.q_len, 0, kMaxPosition); !s.ok()) return s;
  if (auto s = CheckRange("kv_len", task.kv_len, 0, kMaxPosition); !s.ok()) return s;
  if (auto s = CheckRange("kv_begin", task.kv_begin, 0, task.kv_len); !s.ok()) return s;
  return CheckRange("first_query_position", task.first_query_position, -kMaxPosition, kMaxPosition);
}

absl::Status ValidatePages(const AttentionTask& task) {
  const PagedKvView& kv = task.kv_pages;
  if (kv.page_size < kPageGranularity || kv.page_size % kPageGranularity != 0) {
    return Invalid("page_size", absl::StrCat(kv.page_size),
                   absl::StrCat("a positive multiple of ", kPageGranularity));
  }
  if (kv.num_pages * kv.page_size < task.kv_len) {
    return Invalid(
        "kv_len", absl::StrCat(task.kv_len),
        absl::StrCat("at most the ", kv.num_pages * kv.page_size, " tokens that the pages hold"));
  }
  return absl::OkStatus();
}

// Only caches hold int8.
absl::Status ValidateRows(const char* field, DType dtype) {
  if (dtype != DType::kInt8) return absl::OkStatus();
  return Invalid(field, "rows of int8", "float32, float16 or bfloat16");
}

absl::Status ValidatePointers(const AttentionTask& task) {
  if (task.q_len == 0) return absl::OkStatus();
  if (auto s = ValidateRows("q", task.q.dtype); !s.ok()) return s;
  if (auto s = ValidateRows("o", task.o.dtype); !s.ok()) return s;
  if (task.q.data == nullptr) return Invalid("q", "missing", "a tensor");
  if (task.o.data == nullptr) return Invalid("o", "missing", "a buffer");
  if (task.kv_len == 0 || task.kv_pages.pages != nullptr) return absl::OkStatus();
  if (task.k.data == nullptr) return Invalid("k", "missing", "a tensor");
  if (task.v.data == nullptr) return Invalid("v", "missing", "a tensor");
  if (auto s = ValidateRows("k", task.k.dtype); !s.ok()) return s;
  return ValidateRows("v", task.v.dtype);
}

}  // namespace

absl::Status ValidateParams(const AttentionParams& params) {
  if (auto s = ValidateHeads(params); !s.ok()) return s;
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

absl::Status ValidateTask(const AttentionTask& task) {
  if (auto s = ValidateParams(task.params); !s.ok()) return s;
  if (auto s = ValidateLengths(task); !s.ok()) return s;
  if (task.kv_pages.pages != nullptr) {
    if (auto s = ValidatePages(task); !s.ok()) return s;
  }
  return ValidatePointers(task);
}

}  // namespace attention
