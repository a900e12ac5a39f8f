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
  const double low = std::max(std::floor(PairOfTurns(p, p.beta_fast)), 0.0);
  double high = std::min(std::ceil(PairOfTurns(p, p.beta_slow)), p.dim - 1.0);
  if (high <= low) high = low + 0.001;  // as in the authors' code: a step instead of a ramp
  const double divided = std::clamp((pair - low) / (high - low), 0.0, 1.0);
  return divided * frequency / p.factor + (1 - divided) * frequency;
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
  if (p.scaling == RotaryScaling::kNone) return absl::OkStatus();
  if (!std::isfinite(p.factor) || p.factor < 1) return Invalid("factor", p.factor, "1 or more");
  if (p.scaling == RotaryScaling::kLinear) return absl::OkStatus();
  if (p.original_max_positions < 1) {
    return Invalid("original_max_positions", p.original_max_positions, "1 or more");
  }
  if (p.scaling == RotaryScaling::kLlama3) {
    if (!IsPositive(p.low_freq_factor)) {
      return Invalid("low_freq_factor", p.low_freq_factor, "above 0");
    }
    if (!std::isfinite(p.high_freq_factor) || p.high_freq_factor <= p.low_freq_factor) {
      return Invalid("high_freq_factor", p.high_freq_factor,
                     absl::StrCat("above low_freq_factor (", p.low_freq_factor, ")"));
    }
    return absl::OkStatus();
  }
  if (!IsPositive(p.beta_slow)) return Invalid("beta_slow", p.beta_slow, "above 0");
  if (!std::isfinite(p.beta_fast) || p.beta_fast <= p.beta_slow) {
    return Invalid("beta_fast", p.beta_fast, absl::StrCat("above beta_slow (", p.beta_slow, ")"));
  }
  if (!IsPositive(p.attention_factor)) {
    return Invalid("attention_factor", p.attention_factor, "above 0");
  }
  return absl::OkStatus();
}

Rotary::Rotary(const RotaryParams& params) : params_(params) {
  const int pairs = params.dim / 2;
  frequencies_.reserve(static_cast<std::size_t>(pairs));
  for (int pair = 0; pair < pairs; ++pair) {
    const double frequency = std::pow(params.theta, -2.0 * pair / params.dim);
    switch (params.scaling) {
      case RotaryScaling::kNone:
        frequencies_.push_back(frequency);
        break;
      case RotaryScaling::kLinear:
        frequencies_.push_back(frequency / params.factor);
        break;
      case RotaryScaling::kLlama3:
        frequencies_.push_back(Llama3Frequency(params, frequency));
        break;
      case RotaryScaling::kYarn:
        frequencies_.push_back(YarnFrequency(params, pair, frequency));
        break;
    }
  }
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
