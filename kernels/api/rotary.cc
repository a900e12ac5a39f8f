#include "kernels/api/rotary.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "absl/strings/str_cat.h"

namespace attention {
namespace {

template <typename Value>
absl::Status Invalid(const char* field, const Value& actual, const std::string& expected) {
  return absl::InvalidArgumentError(
      absl::StrCat("rotary.", field, " is ", actual, ", expected ", expected));
}

bool IsPositive(double value) { return std::isfinite(value) && value > 0; }

double Llama3Frequency(const RotaryParams& p, double frequency) {
  const double wavelength = 2 * std::numbers::pi / frequency;
  const double original = static_cast<double>(p.original_max_positions);
  if (wavelength < original / p.high_freq_factor) return frequency;
  if (wavelength > original / p.low_freq_factor) return frequency / p.factor;
  const double kept =
      (original / wavelength - p.low_freq_factor) / (p.high_freq_factor - p.low_freq_factor);
  return (1 - kept) * frequency / p.factor + kept * frequency;
}

// The pair whose frequency turns `turns` times within the original context.
double PairOfTurns(const RotaryParams& p, double turns) {
  const double original = static_cast<double>(p.original_max_positions);
  return p.dim * std::log(original / (turns * 2 * std::numbers::pi)) / (2 * std::log(p.theta));
}

double YarnFrequency(const RotaryParams& p, int pair, double frequency) {
  double low = PairOfTurns(p, p.beta_fast);
  double high = PairOfTurns(p, p.beta_slow);
  if (p.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, p.dim - 1.0);
  if (high <= low) high = low + 0.001;  // as in the authors' code: a step instead of a ramp
  const double divided = std::clamp((pair - low) / (high - low), 0.0, 1.0);
  return divided * frequency / p.factor + (1 - divided) * frequency;
}

double FrequencyOf(const RotaryParams& p, int pair) {
  const double frequency = std::pow(p.theta, -2.0 * pair / p.dim);
  switch (p.scaling) {
    case RotaryScaling::kNone:
      break;
    case RotaryScaling::kLinear:
      return frequency / p.factor;
    case RotaryScaling::kLlama3:
      return Llama3Frequency(p, frequency);
    case RotaryScaling::kYarn:
      return YarnFrequency(p, pair, frequency);
    case RotaryScaling::kCustom:
      return p.inv_freq[static_cast<std::size_t>(pair)];
  }
  return frequency;
}

absl::Status ValidateFactor(const char* field, double factor) {
  if (std::isfinite(factor) && factor >= 1) return absl::OkStatus();
  return Invalid(field, factor, "1 or more");
}

absl::Status ValidateMaxPositions(const char* field, std::int64_t positions) {
  if (positions >= 1) return absl::OkStatus();
  return Invalid(field, positions, "1 or more");
}

absl::Status ValidateLlama3(const RotaryParams& p) {
  if (auto s = ValidateFactor("llama3.factor", p.factor); !s.ok()) return s;
  if (auto s = ValidateMaxPositions("llama3.original_max_positions", p.original_max_positions);
      !s.ok()) {
    return s;
  }
  if (!IsPositive(p.low_freq_factor)) {
    return Invalid("llama3.low_freq_factor", p.low_freq_factor, "above 0");
  }
  if (std::isfinite(p.high_freq_factor) && p.high_freq_factor > p.low_freq_factor) {
    return absl::OkStatus();
  }
  return Invalid("llama3.high_freq_factor", p.high_freq_factor,
                 absl::StrCat("above low_freq_factor (", p.low_freq_factor, ")"));
}

absl::Status ValidateYarn(const RotaryParams& p) {
  if (auto s = ValidateFactor("yarn.factor", p.factor); !s.ok()) return s;
  if (auto s = ValidateMaxPositions("yarn.original_max_positions", p.original_max_positions);
      !s.ok()) {
    return s;
  }
  if (!IsPositive(p.beta_slow)) return Invalid("yarn.beta_slow", p.beta_slow, "above 0");
  if (!std::isfinite(p.beta_fast) || p.beta_fast <= p.beta_slow) {
    return Invalid("yarn.beta_fast", p.beta_fast,
                   absl::StrCat("above beta_slow (", p.beta_slow, ")"));
  }
  if (IsPositive(p.attention_factor)) return absl::OkStatus();
  return Invalid("yarn.attention_factor", p.attention_factor, "above 0");
}

absl::Status ValidateCustom(const RotaryParams& p) {
  const auto pairs = static_cast<std::size_t>(p.dim / 2);
  if (p.inv_freq.size() != pairs) {
    return absl::InvalidArgumentError(
        absl::StrCat("rotary.custom.inv_freq has ", p.inv_freq.size(), " entries, expected ", pairs,
                     ", one for each pair of rotary.dim (", p.dim, ")"));
  }
  for (std::size_t i = 0; i < pairs; ++i) {
    if (std::isfinite(p.inv_freq[i]) && p.inv_freq[i] >= 0) continue;
    return Invalid(absl::StrCat("custom.inv_freq[", i, "]").c_str(), p.inv_freq[i],
                   "0 or a finite number above");
  }
  if (IsPositive(p.attention_factor)) return absl::OkStatus();
  return Invalid("custom.attention_factor", p.attention_factor, "above 0");
}

}  // namespace

double DefaultAttentionFactor(double factor) { return 0.1 * std::log(factor) + 1; }

absl::Status ValidateRotary(const RotaryParams& p, int head_dim) {
  // YaRN divides by log(theta).
  if (!std::isfinite(p.theta) || p.theta <= 1) return Invalid("theta", p.theta, "above 1");
  if (p.dim < 2 || p.dim % 2 != 0 || p.dim > head_dim) {
    return Invalid("dim", p.dim,
                   absl::StrCat("an even number from 2 to head_dim_qk (", head_dim, ")"));
  }
  switch (p.scaling) {
    case RotaryScaling::kNone:
      break;
    case RotaryScaling::kLinear:
      return ValidateFactor("linear.factor", p.factor);
    case RotaryScaling::kLlama3:
      return ValidateLlama3(p);
    case RotaryScaling::kYarn:
      return ValidateYarn(p);
    case RotaryScaling::kCustom:
      return ValidateCustom(p);
  }
  return absl::OkStatus();
}

Rotary::Rotary(const RotaryParams& params) : params_(params) {
  const int pairs = params.dim / 2;
  frequencies_.reserve(static_cast<std::size_t>(pairs));
  for (int pair = 0; pair < pairs; ++pair) frequencies_.push_back(FrequencyOf(params, pair));
}

void Rotary::Turn(std::int64_t position, float* cos_sin) const {
  const std::size_t pairs = frequencies_.size();
  for (std::size_t pair = 0; pair < pairs; ++pair) {
    const double angle = static_cast<double>(position) * frequencies_[pair];
    cos_sin[pair] = static_cast<float>(std::cos(angle) * params_.attention_factor);
    cos_sin[pairs + pair] = static_cast<float>(std::sin(angle) * params_.attention_factor);
  }
}

void Rotary::Apply(const float* cos_sin, float* head) const {
  const int pairs = params_.dim / 2;
  const int step = params_.is_interleaved ? 2 : 1;
  const int partner = params_.is_interleaved ? 1 : pairs;
  for (int pair = 0; pair < pairs; ++pair) {
    float& a = head[pair * step];
    float& b = head[pair * step + partner];
    const float x = a;
    const float y = b;
    const float cos = cos_sin[pair];
    const float sin = cos_sin[pairs + pair];
    a = x * cos - y * sin;
    b = y * cos + x * sin;
  }
}

}  // namespace attention
