#include "kernels/api/rotary.h"

#include <gmock/gmock.h>

#include <cmath>
#include <complex>

namespace attention {
namespace {

using ::testing::HasSubstr;

constexpr int kDim = 8;

RotaryParams Params(RotaryScaling scaling = RotaryScaling::kNone) {
  RotaryParams params;
  params.dim = kDim;
  params.scaling = scaling;
  params.factor = scaling == RotaryScaling::kNone ? 1 : 8;
  params.original_max_positions = 8192;
  return params;
}

std::vector<float> Rotated(const Rotary& rotary, std::int64_t position, std::vector<float> head) {
  std::vector<float> cos_sin(static_cast<std::size_t>(rotary.params().dim));
  rotary.Turn(position, cos_sin.data());
  rotary.Apply(cos_sin.data(), head.data());
  return head;
}

TEST(RotaryTest, RotatesEachPairByPositionTimesItsFrequency) {
  const std::vector<float> head = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10};
  for (const bool is_interleaved : {false, true}) {
    RotaryParams params = Params();
    params.is_interleaved = is_interleaved;
    const std::vector<float> out = Rotated(Rotary(params), 3, head);
    for (int pair = 0; pair < kDim / 2; ++pair) {
      const int a = is_interleaved ? 2 * pair : pair;
      const int b = is_interleaved ? 2 * pair + 1 : pair + kDim / 2;
      const std::complex<double> turned =
          std::complex<double>(head[a], head[b]) *
          std::polar(1.0, 3 * std::pow(10000.0, -2.0 * pair / kDim));
      EXPECT_NEAR(out[a], turned.real(), 1e-5);
      EXPECT_NEAR(out[b], turned.imag(), 1e-5);
    }
    EXPECT_EQ(out[8], 9) << "past dim nothing is rotated";
    EXPECT_EQ(out[9], 10);
  }
}

TEST(RotaryTest, PositionZeroChangesNothing) {
  const std::vector<float> head = {1, -2, 3, -4, 5, -6, 7, -8};
  EXPECT_EQ(Rotated(Rotary(Params()), 0, head), head);
}

TEST(RotaryTest, ScoresDependOnTheDistanceAlone) {
  const Rotary rotary(Params());
  const std::vector<float> q = {1, 2, 0, -1, 2, 1, 3, 1};
  const std::vector<float> k = {2, -1, 1, 1, 0, 1, -1, 2};
  const auto score = [&](std::int64_t i, std::int64_t j) {
    const std::vector<float> a = Rotated(rotary, i, q);
    const std::vector<float> b = Rotated(rotary, j, k);
    double sum = 0;
    for (int d = 0; d < kDim; ++d) sum += a[d] * b[d];
    return sum;
  };
  EXPECT_NEAR(score(7, 2), score(105, 100), 1e-4);
  // Far out, where an angle in float32 would be wrong by more than a whole turn.
  EXPECT_NEAR(score(7, 2), score((std::int64_t{1} << 30) + 5, std::int64_t{1} << 30), 1e-4);
}

TEST(RotaryTest, LinearScalingDividesEveryFrequency) {
  const std::vector<double> plain = Rotary(Params()).frequencies();
  const std::vector<double> scaled = Rotary(Params(RotaryScaling::kLinear)).frequencies();
  for (std::size_t i = 0; i < plain.size(); ++i) EXPECT_DOUBLE_EQ(scaled[i], plain[i] / 8);
}

TEST(RotaryTest, Llama3KeepsShortWavelengthsAndDividesLongOnes) {
  RotaryParams params = Params(RotaryScaling::kLlama3);
  params.dim = 128;
  params.theta = 500000;
  const std::vector<double> scaled = Rotary(params).frequencies();
  params.scaling = RotaryScaling::kNone;
  const std::vector<double> plain = Rotary(params).frequencies();
  EXPECT_DOUBLE_EQ(scaled[0], plain[0]);
  EXPECT_DOUBLE_EQ(scaled[63], plain[63] / 8);
  // Wavelength 2 pi / plain[32] = 4442.9 lies between 8192 / 4 and 8192 / 1.
  const double kept = (8192 * plain[32] / (2 * M_PI) - 1) / 3;
  EXPECT_NEAR(scaled[32], plain[32] * ((1 - kept) / 8 + kept), 1e-12);
  EXPECT_LT(scaled[32], plain[32]);
  EXPECT_GT(scaled[32], plain[32] / 8);
}

TEST(RotaryTest, YarnRampsBetweenTheTwoAndScalesVectors) {
  RotaryParams params = Params(RotaryScaling::kYarn);
  params.dim = 64;
  params.original_max_positions = 4096;
  params.attention_factor = DefaultAttentionFactor(8);
  const Rotary rotary(params);
  params.scaling = RotaryScaling::kNone;
  params.attention_factor = 1;
  const std::vector<double> plain = Rotary(params).frequencies();
  // Pair i turns 4096 plain[i] / 2 pi times: 32 times at i = 10.5, once at i = 22.5.
  EXPECT_DOUBLE_EQ(rotary.frequencies()[10], plain[10]);
  EXPECT_DOUBLE_EQ(rotary.frequencies()[23], plain[23] / 8);
  const double divided = (16.0 - 10) / (23 - 10);
  EXPECT_NEAR(rotary.frequencies()[16], plain[16] * (divided / 8 + 1 - divided), 1e-12);
  EXPECT_NEAR(DefaultAttentionFactor(8), 1.2079, 1e-4);
  std::vector<float> head(64, 1.0f);
  EXPECT_FLOAT_EQ(Rotated(rotary, 0, head)[0], static_cast<float>(DefaultAttentionFactor(8)));
}

TEST(RotaryTest, YarnsRampMayBeginAndEndBetweenPairs) {
  RotaryParams params = Params(RotaryScaling::kYarn);
  params.dim = 64;
  params.theta = 150000;
  params.factor = 32;
  params.original_max_positions = 4096;
  const std::vector<double> rounded = Rotary(params).frequencies();
  params.truncate = false;
  const std::vector<double> exact = Rotary(params).frequencies();
  const auto pair_of = [](double turns) {
    return 64 * std::log(4096 / (turns * 2 * M_PI)) / (2 * std::log(150000.0));
  };
  const double low = pair_of(32), high = pair_of(1);  // 8.09 and 17.40
  double largest = 0;
  for (int pair = 0; pair < 32; ++pair) {
    const double plain = std::pow(150000.0, -pair / 32.0);
    const double divided = std::min(std::max((pair - low) / (high - low), 0.0), 1.0);
    EXPECT_NEAR(exact[pair], plain * (divided / 32 + 1 - divided), 1e-12 * plain) << pair;
    largest = std::max(largest, std::abs(rounded[pair] / exact[pair] - 1));
  }
  EXPECT_GT(largest, 0.5) << "the choice shows";
}

TEST(RotaryTest, CustomFrequenciesAreTakenAsTheyAre) {
  RotaryParams params = Params(RotaryScaling::kCustom);
  params.inv_freq = {1, 0.25, 0, 0.001};
  params.attention_factor = 1.5;
  ASSERT_TRUE(ValidateRotary(params, kDim).ok());
  const Rotary rotary(params);
  EXPECT_EQ(rotary.frequencies(), params.inv_freq);
  const std::vector<float> head = {1, 2, 3, 4, 5, 6, 7, 8};
  const std::vector<float> out = Rotated(rotary, 7, head);
  for (int pair = 0; pair < kDim / 2; ++pair) {
    const std::complex<double> turned = std::complex<double>(head[pair], head[pair + 4]) *
                                        std::polar(1.5, 7 * params.inv_freq[pair]);
    EXPECT_NEAR(out[pair], turned.real(), 1e-5);
    EXPECT_NEAR(out[pair + 4], turned.imag(), 1e-5);
  }
}

TEST(RotaryTest, BadParametersAreNamed) {
  const auto expect = [](void (*change)(RotaryParams&), const char* text) {
    RotaryParams params = Params(RotaryScaling::kYarn);
    change(params);
    const absl::Status status = ValidateRotary(params, kDim);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(status.message()), HasSubstr(text));
  };
  expect([](RotaryParams& p) { p.theta = 1; }, "rotary.theta is 1, expected above 1");
  expect([](RotaryParams& p) { p.theta = NAN; }, "rotary.theta is nan");
  expect([](RotaryParams& p) { p.dim = 7; }, "rotary.dim is 7, expected an even number from 2 to");
  expect([](RotaryParams& p) { p.dim = 10; }, "head_dim_qk (8)");
  expect([](RotaryParams& p) { p.dim = 0; }, "rotary.dim is 0");
  expect([](RotaryParams& p) { p.factor = 0.5; }, "rotary.yarn.factor is 0.5, expected 1 or more");
  expect([](RotaryParams& p) { p.original_max_positions = 0; },
         "rotary.yarn.original_max_positions");
  expect([](RotaryParams& p) { p.beta_slow = -1; }, "rotary.yarn.beta_slow");
  expect([](RotaryParams& p) { p.beta_fast = 1; }, "rotary.yarn.beta_fast is 1, expected above");
  expect([](RotaryParams& p) { p.attention_factor = INFINITY; }, "rotary.yarn.attention_factor");
  expect(
      [](RotaryParams& p) {
        p.scaling = RotaryScaling::kLlama3;
        p.high_freq_factor = 1;
      },
      "rotary.llama3.high_freq_factor is 1, expected above low_freq_factor (1)");
  expect(
      [](RotaryParams& p) {
        p.scaling = RotaryScaling::kCustom;
        p.inv_freq = {1, 2, 3};
      },
      "rotary.custom.inv_freq has 3 entries, expected 4, one for each pair of rotary.dim (8)");
  expect(
      [](RotaryParams& p) {
        p.scaling = RotaryScaling::kCustom;
        p.inv_freq = {1, 2, -3, NAN};
      },
      "rotary.custom.inv_freq[2] is -3, expected 0 or a finite number above");
  expect(
      [](RotaryParams& p) {
        p.scaling = RotaryScaling::kCustom;
        p.inv_freq = {1, 2, 3, 4};
        p.attention_factor = -1;
      },
      "rotary.custom.attention_factor is -1, expected above 0");
  EXPECT_TRUE(ValidateRotary(Params(RotaryScaling::kYarn), kDim).ok());
  EXPECT_TRUE(ValidateRotary(Params(RotaryScaling::kLlama3), kDim).ok());
}

}  // namespace
}  // namespace attention
