// Rotary position embedding (Su et al. 2021) and the ways in use to stretch it over longer
// contexts.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace attention {

enum class RotaryScaling {
  kNone,
  kLinear,  // Chen et al. 2023: every frequency divided by factor
  kLlama3,  // Llama 3.1: long wavelengths divided by factor, short ones kept, a ramp between
  kYarn,    // Peng et al. 2023: the same by turns within original_max_positions; scaled vectors
  kCustom,  // every frequency given, for LongRoPE and what comes next; scaled vectors
};

struct RotaryParams {
  double theta = 10000;
  int dim = 0;                  // elements rotated, from the head's start; even
  bool is_interleaved = false;  // pairs (2i, 2i + 1); else (i, i + dim / 2)
  RotaryScaling scaling = RotaryScaling::kNone;
  double factor = 1;
  std::int64_t original_max_positions = 0;  // llama3, yarn
  double low_freq_factor = 1;               // llama3
  double high_freq_factor = 4;              // llama3
  double beta_fast = 32;                    // yarn
  double beta_slow = 1;                     // yarn
  bool truncate = true;                     // yarn: the ramp begins and ends at whole pairs
  std::vector<double> inv_freq;             // custom: radians a position; [dim / 2], not negative
  double attention_factor = 1;              // yarn, custom: of the rotated elements; resolved

  bool operator==(const RotaryParams&) const = default;
};

// 0.1 ln(factor) + 1, YaRN's recommendation.
double DefaultAttentionFactor(double factor);

// INVALID_ARGUMENT names the field, as RotaryConfig has it, with its actual and the expected value.
absl::Status ValidateRotary(const RotaryParams& params, int head_dim);

// The rotation, its frequencies worked out. Immutable, hence thread-safe.
class Rotary {
 public:
  // `params` must be valid.
  explicit Rotary(const RotaryParams& params);

  const RotaryParams& params() const { return params_; }
  // Radians a position, after scaling. [dim / 2]
  const std::vector<double>& frequencies() const { return frequencies_; }

  // The rotation at a position: cosines [dim / 2], then sines [dim / 2], times attention_factor.
  // Angles are taken in float64: in float32 they would be off by a radian at position 2^24.
  void Turn(std::int64_t position, float* cos_sin) const;

  // Rotates one head, in place.
  void Apply(const float* cos_sin, float* head) const;

 private:
  RotaryParams params_;
  std::vector<double> frequencies_;
};

}  // namespace attention
