// Text tokens that attend to the patches of an image: cross-attention with the image kept in a
// session. The encoder's keys and values are sent once; from then on a step carries the queries of
// one token alone, and the session does not grow. What comes back is compared with float64.
//
//   attention-cross-attention --target 127.0.0.1:7070
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "attention/client/client.h"
#include "client/flags/connection_flags.h"

namespace {

using namespace attention::client;  // NOLINT(google-build-using-namespace): a sample reads better

constexpr int kNumLayers = 4;
constexpr int kNumHeads = 8;
constexpr int kHeadDim = 32;
constexpr std::int64_t kNumPatches = 14 * 14;  // an image of 224 x 224 pixels in patches of 16 x 16
constexpr int kNumTokens = 8;
constexpr double kErrorBound = 1e-5;

// Stands in for a model's projections: random rows [num_rows, kNumHeads, kHeadDim].
Tensor Project(std::int64_t num_rows, std::mt19937& generator) {
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<std::size_t>(num_rows * kNumHeads * kHeadDim));
  for (float& value : values) value = normal(generator);
  return Tensor::FromFloats(values, {num_rows, kNumHeads, kHeadDim});
}

// The encoder's keys and values of one layer.
struct ImageLayer {
  Tensor k, v;
};

// A session with the image in every layer.
absl::StatusOr<Session> RememberImage(Client& client, const std::vector<ImageLayer>& image) {
  absl::StatusOr<Session> session = client.CreateSession({.geometry = {.num_layers = kNumLayers,
                                                                       .num_kv_heads = kNumHeads,
                                                                       .head_dim_qk = kHeadDim,
                                                                       .head_dim_v = kHeadDim}});
  if (!session.ok()) return session;
  StepRequest request;
  for (int layer = 0; layer < kNumLayers; ++layer) {
    // Without q the step only appends.
    auto step =
        session->MakeStep({.layer = layer, .k = image[layer].k.view(), .v = image[layer].v.view()});
    if (!step.ok()) return step.status();
    request.steps.push_back(*std::move(step));
  }
  const absl::StatusOr<StepResult> answer = client.Step(request);
  if (!answer.ok()) return answer.status();
  for (int layer = 0; layer < kNumLayers; ++layer) {
    const absl::Status status = session->Accept(request.steps[layer], answer->results[layer]);
    if (!status.ok()) return status;
  }
  return session;
}

// The largest distance of `seen` from attention of one token over the image in float64.
double LargestError(const Tensor& q, const ImageLayer& image, std::span<const float> seen) {
  double largest = 0;
  for (int head = 0; head < kNumHeads; ++head) {
    const float* q_row = q.floats().data() + head * kHeadDim;
    std::vector<double> weights;
    for (std::int64_t j = 0; j < kNumPatches; ++j) {
      const float* k_row = image.k.floats().data() + (j * kNumHeads + head) * kHeadDim;
      double dot = 0;
      for (int d = 0; d < kHeadDim; ++d) dot += double{q_row[d]} * k_row[d];
      weights.push_back(std::exp(dot / std::sqrt(double{kHeadDim})));
    }
    double denominator = 0;
    for (const double weight : weights) denominator += weight;
    for (int d = 0; d < kHeadDim; ++d) {
      double expected = 0;
      for (std::int64_t j = 0; j < kNumPatches; ++j) {
        expected += weights[j] * image.v.floats()[(j * kNumHeads + head) * kHeadDim + d];
      }
      const double error = std::abs(expected / denominator - seen[head * kHeadDim + d]);
      if (!(error <= largest)) largest = error;  // a NaN stays
    }
  }
  return largest;
}

absl::Status Run(const ClientOptions& connection) {
  absl::StatusOr<std::shared_ptr<Client>> client = Client::Connect(connection);
  if (!client.ok()) return client.status();
  std::mt19937 generator(1);
  std::vector<ImageLayer> image;
  for (int layer = 0; layer < kNumLayers; ++layer) {
    image.push_back({Project(kNumPatches, generator), Project(kNumPatches, generator)});
  }
  absl::StatusOr<Session> session = RememberImage(**client, image);
  if (!session.ok()) return session.status();
  double largest_error = 0;
  for (int token = 0; token < kNumTokens; ++token) {
    for (int layer = 0; layer < kNumLayers; ++layer) {
      const Tensor q = Project(1, generator);
      // Without k and v the step only attends; without is_causal every patch is visible.
      const auto result = session->Step({.layer = layer, .q = q.view()});
      if (!result.ok()) return result.status();
      const double error = LargestError(q, image[layer], result->output.floats());
      if (!(error <= largest_error)) largest_error = error;
    }
    std::printf("token %d: %lld patches seen in %d layers\n", token,
                static_cast<long long>(session->position(0)), kNumLayers);
  }
  absl::Status status = session->Refresh();
  const std::int64_t length = session->info().committed_length;
  status.Update(session->Delete());
  if (!status.ok()) return status;
  std::printf(
      "patches in the session: %lld, as at the start\nlargest error against float64: %.1e\n",
      static_cast<long long>(length), largest_error);
  if (length != kNumPatches) return absl::InternalError("the session has grown");
  return largest_error <= kErrorBound ? absl::OkStatus() : absl::InternalError("error too large");
}

}  // namespace

int main(int argc, char** argv) {
  int exit_code = 0;
  const auto options =
      ParseConnection(argc, argv, "attention-cross-attention",
                      "Cross-attention over an image that a session keeps", &exit_code);
  if (!options.has_value()) return exit_code;
  const absl::Status status = Run(*options);
  if (status.ok()) return 0;
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  return 1;
}
