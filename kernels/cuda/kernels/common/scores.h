// From dot products to scores, and who may see them: shared by every kernel, so that all agree to
// the bit on what is visible.
#pragma once

#include <cstdint>

#include "kernels/cuda/contract/device_types.h"
#include "kernels/cuda/contract/key_span.h"
#include "kernels/cuda/kernels/common/convert.h"

namespace attention::cuda {

inline constexpr float kLog2E = 1.4426950408889634f;

ATTENTION_DEVICE float MinusInfinity() { return FloatOf(0xff800000u); }

// A row of a tile: its query, its query head, and what limits leave visible to it.
struct ScoreRow {
  std::int64_t query = 0;
  int head = 0;
  RowKeys keys;
};

ATTENTION_DEVICE ScoreRow ScoreRowAt(const DeviceTask& task, std::int64_t query, int head) {
  return {query, head, KeysAt(task, task.first_query_position + query)};
}

ATTENTION_DEVICE std::int64_t IndexIn(const BiasOrMaskStrides& strides, const ScoreRow& row,
                                      int key) {
  return row.head * strides.head + row.query * strides.row + key * strides.key;
}

ATTENTION_DEVICE bool IsVisible(const DeviceTask& task, const ScoreRow& row, int key) {
  if (!Contains(row.keys, task.kv_begin, key)) return false;
  if (task.mask == nullptr) return true;
  return task.mask[IndexIn(task.mask_strides, row, key)] != 0;
}

ATTENTION_DEVICE bool HasModifiers(const DeviceTask& task) {
  return task.soft_cap > 0 || task.alibi_slopes != nullptr || task.bias != nullptr;
}

// a + b, but the largest or smallest number where finite ones add up to more than float32 holds: a
// bias of -FLT_MAX masks nothing by itself. `b` is finite if `factor`, of which it was made, is.
ATTENTION_DEVICE float SaturatedSum(float a, float b, float factor) {
  constexpr std::uint32_t kMagnitude = 0x7fffffffu, kInfinity = 0x7f800000u;
  const float sum = a + b;
  const bool are_finite =
      (BitsOf(a) & kMagnitude) < kInfinity && (BitsOf(factor) & kMagnitude) < kInfinity;
  const float most = FloatOf(kInfinity - 1);
  return are_finite ? Min(Max(sum, -most), most) : sum;
}

// The score of a visible key. `scaled` is softmax_scale * <q, k>.
ATTENTION_DEVICE float ModifiedScore(const DeviceTask& task, const ScoreRow& row, int key,
                                     float scaled) {
  float score = scaled;
  if (task.soft_cap > 0) score = task.soft_cap * Tanh(score / task.soft_cap);
  if (task.alibi_slopes != nullptr) {
    const auto distance = static_cast<float>(key - (task.first_query_position + row.query));
    const float slope = task.alibi_slopes[row.head];
    score = SaturatedSum(score, slope * distance, slope);
  }
  if (task.bias != nullptr) {
    const float bias =
        ElementToFloat(task.bias, task.bias_dtype, IndexIn(task.bias_strides, row, key));
    score = SaturatedSum(score, bias, bias);
  }
  return score;
}

// The score, or minus infinity for what is invisible. Nothing of an invisible key is used.
ATTENTION_DEVICE float ScoreOf(const DeviceTask& task, const ScoreRow& row, int key, float scaled,
                               bool is_masked, bool has_modifiers) {
  if (is_masked && !IsVisible(task, row, key)) return MinusInfinity();
  return has_modifiers ? ModifiedScore(task, row, key, scaled) : scaled;
}

// The exponent's origin: the maximum, or 0 where nothing was visible.
ATTENTION_DEVICE float OriginOf(float max) { return max == MinusInfinity() ? 0.0f : max; }

// exp(from - to's origin): the factor of sums that were taken with another maximum. Exactly 1 for
// equal ones, 0 for nothing.
ATTENTION_DEVICE float Correction(float from, float origin) {
  return Exp2((from - origin) * kLog2E);
}

ATTENTION_DEVICE const char* PageOf(const DeviceTask& task, int kv_head, int key, int* token) {
  const auto index = static_cast<unsigned>(key - task.page_origin);
  const auto page_size = static_cast<unsigned>(task.layout.page_size);
  *token = static_cast<int>(index % page_size);
  return task.pages[index / page_size] + kv_head * task.layout.head_bytes;
}

}  // namespace attention::cuda
