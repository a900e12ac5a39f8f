// Seven attention variants through the SDK, each checked against float64 on this side.
//
//   attention-quickstart --target 127.0.0.1:7070
//
// Prints a table and exits with 0 if every error is within its bound, 1 if one is not, 2 if a call
// failed or a flag is wrong. --help has the flags for TLS and tokens.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "attention/client/client.h"
#include "client/flags/connection_flags.h"

namespace {

using namespace attention::client;  // NOLINT(google-build-using-namespace): a sample reads better

struct Variant {
  const char* name;
  std::int64_t q_len;
  std::int64_t kv_len;
  std::int64_t num_q_heads;
  std::int64_t num_kv_heads;
  DType dtype;
  AttentionConfig config;
};

constexpr std::int64_t kHeadDim = 64;
constexpr int kTimedCalls = 9;

std::vector<Variant> Variants() {
  const AttentionConfig full;
  const AttentionConfig causal{.is_causal = true};
  const AttentionConfig sliding{.is_causal = true, .window_left = 31};  // 32 tokens wide
  const DType f32 = DType::kFloat32;
  return {{"scaled dot-product", 128, 128, 1, 1, f32, full},
          {"multi-head", 128, 128, 8, 8, f32, full},
          {"cross", 32, 200, 8, 8, f32, full},
          {"causal", 128, 128, 8, 8, f32, causal},
          {"sliding window", 128, 128, 8, 8, f32, sliding},
          {"multi-query", 128, 128, 8, 1, DType::kBFloat16, causal},
          {"grouped-query", 128, 128, 8, 2, DType::kFloat16, causal}};
}

// Inputs are from [-1, 1], so outputs are too: the bound is the spacing of the type's numbers
// there, and for float32, whose sums of some hundred terms round more than its result does, a
// multiple.
double ErrorBound(DType dtype) {
  if (dtype == DType::kFloat16) return 0x1p-10;
  if (dtype == DType::kBFloat16) return 0x1p-7;
  return 5e-6;
}

Tensor RandomTensor(Shape shape, DType dtype, std::mt19937& generator) {
  std::uniform_real_distribution<float> uniform(-1, 1);
  std::vector<float> values(static_cast<std::size_t>(NumElements(shape)));
  for (float& value : values) value = uniform(generator);
  return Tensor::FromFloats(values, std::move(shape), dtype);
}

bool IsVisible(const AttentionConfig& config, std::int64_t position, std::int64_t j) {
  if (config.is_causal && j > position) return false;
  return !config.window_left.has_value() || j >= position - *config.window_left;
}

// One row of attention in float64. `q` [kHeadDim], `k` and `v` [kv_len, num_kv_heads, kHeadDim].
std::vector<double> ReferenceRow(const Variant& variant, const float* q, const float* k,
                                 const float* v, std::int64_t position, std::int64_t kv_head) {
  const std::int64_t stride = variant.num_kv_heads * kHeadDim;
  std::vector<double> scores(variant.kv_len, -std::numeric_limits<double>::infinity());
  for (std::int64_t j = 0; j < variant.kv_len; ++j) {
    if (!IsVisible(variant.config, position, j)) continue;
    double dot = 0;
    for (std::int64_t d = 0; d < kHeadDim; ++d) {
      dot += double{q[d]} * double{k[j * stride + kv_head * kHeadDim + d]};
    }
    scores[j] = dot / std::sqrt(double{kHeadDim});
  }
  const double max_score = *std::max_element(scores.begin(), scores.end());
  double denominator = 0;
  std::vector<double> output(kHeadDim, 0.0);
  for (std::int64_t j = 0; j < variant.kv_len; ++j) {
    const double weight = std::exp(scores[j] - max_score);
    denominator += weight;
    for (std::int64_t d = 0; d < kHeadDim; ++d) {
      output[d] += weight * double{v[j * stride + kv_head * kHeadDim + d]};
    }
  }
  for (double& value : output) value /= denominator;
  return output;
}

// The largest distance between `result` and attention in float64 over the same inputs.
double LargestError(const Variant& variant, const Tensor& q, const Tensor& k, const Tensor& v,
                    const Tensor& result) {
  const std::vector<float> q_values = q.ToFloats(), k_values = k.ToFloats(),
                           v_values = v.ToFloats(), actual = result.ToFloats();
  if (actual.size() != q_values.size()) return std::numeric_limits<double>::infinity();
  const std::int64_t group = variant.num_q_heads / variant.num_kv_heads;
  double largest = 0;
  for (std::int64_t i = 0; i < variant.q_len; ++i) {
    const std::int64_t position = variant.kv_len - variant.q_len + i;
    for (std::int64_t head = 0; head < variant.num_q_heads; ++head) {
      const std::int64_t offset = (i * variant.num_q_heads + head) * kHeadDim;
      const std::vector<double> expected =
          ReferenceRow(variant, q_values.data() + offset, k_values.data(), v_values.data(),
                       position, head / group);
      for (std::int64_t d = 0; d < kHeadDim; ++d) {
        const double error = std::abs(double{actual[offset + d]} - expected[d]);
        if (!(error <= largest)) largest = error;  // a NaN stays
      }
    }
  }
  return largest;
}

struct Outcome {
  double error;
  absl::Duration latency;  // median of kTimedCalls
};

absl::StatusOr<Outcome> Run(Client& client, const Variant& variant, std::mt19937& generator) {
  const Tensor q =
      RandomTensor({variant.q_len, variant.num_q_heads, kHeadDim}, variant.dtype, generator);
  const Shape kv_shape = {variant.kv_len, variant.num_kv_heads, kHeadDim};
  const Tensor k = RandomTensor(kv_shape, variant.dtype, generator);
  const Tensor v = RandomTensor(kv_shape, variant.dtype, generator);

  AttendRequest request;
  request.q = q.view();
  request.k = k.view();
  request.v = v.view();
  request.config = variant.config;

  double largest_error = 0;
  std::vector<absl::Duration> latencies;
  for (int i = 0; i < kTimedCalls; ++i) {
    const absl::Time start = absl::Now();
    const absl::StatusOr<AttendResult> result = client.Attend(request);
    latencies.push_back(absl::Now() - start);
    if (!result.ok()) return result.status();
    if (i == 0) largest_error = LargestError(variant, q, k, v, result->output);
  }
  std::nth_element(latencies.begin(), latencies.begin() + kTimedCalls / 2, latencies.end());
  return Outcome{largest_error, latencies[kTimedCalls / 2]};
}

void PrintHeader() {
  std::printf("%-18s  %-14s  %-14s  %-8s  %12s  %8s  %11s\n", "variant", "q", "k and v", "dtype",
              "error vs f64", "bound", "median (ms)");
}

void PrintRow(const Variant& variant, const Outcome& outcome, bool is_good) {
  const auto shape = [](std::int64_t len, std::int64_t heads) {
    return absl::StrCat("[", len, ", ", heads, ", ", kHeadDim, "]");
  };
  std::printf("%-18s  %-14s  %-14s  %-8s  %12.2e  %8.1e  %11.3f%s\n", variant.name,
              shape(variant.q_len, variant.num_q_heads).c_str(),
              shape(variant.kv_len, variant.num_kv_heads).c_str(),
              std::string(DTypeName(variant.dtype)).c_str(), outcome.error,
              ErrorBound(variant.dtype), absl::ToDoubleMilliseconds(outcome.latency),
              is_good ? "" : "  ERROR TOO LARGE");
}

int RunAll(Client& client) {
  std::mt19937 generator(1);
  bool all_good = true;
  PrintHeader();
  for (const Variant& variant : Variants()) {
    const absl::StatusOr<Outcome> outcome = Run(client, variant, generator);
    if (!outcome.ok()) {
      std::fprintf(stderr, "%s: %s\n", variant.name, outcome.status().ToString().c_str());
      return 2;
    }
    const bool is_good = outcome->error <= ErrorBound(variant.dtype);
    PrintRow(variant, *outcome, is_good);
    all_good = all_good && is_good;
  }
  return all_good ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  int exit_code = 0;
  const auto options =
      ParseConnection(argc, argv, "attention-quickstart",
                      "Seven attention variants, each checked against float64", &exit_code);
  if (!options.has_value()) return exit_code;
  const absl::StatusOr<std::shared_ptr<Client>> client = Client::Connect(*options);
  absl::Status status = client.status();
  if (status.ok()) status = (*client)->WaitUntilReady(absl::Seconds(10));
  if (!status.ok()) {
    std::fprintf(stderr, "%s\n", status.ToString().c_str());
    return 2;
  }
  return RunAll(**client);
}
