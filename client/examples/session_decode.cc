// A two-layer decoder's attention through a session: one prefill, then token by token. The caches
// stay in the server; each step carries only the new rows.
//
//   attention-session-decode --target 127.0.0.1:7070
#include <cstdint>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "attention/client/client.h"
#include "attention/client/errors.h"
#include "client/flags/connection_flags.h"

namespace {

using namespace attention::client;  // NOLINT(google-build-using-namespace): a sample reads better

constexpr int kNumLayers = 2;
constexpr int kNumQHeads = 8;
constexpr int kNumKvHeads = 2;
constexpr int kHeadDim = 64;
constexpr std::int64_t kPromptTokens = 48;
constexpr int kNewTokens = 16;

// Stands in for a model's projections: `num_tokens` random rows.
struct Rows {
  Tensor q, k, v;
};

Rows Project(std::int64_t num_tokens, std::mt19937& generator) {
  std::uniform_real_distribution<float> uniform(-1, 1);
  const auto random = [&](std::int64_t num_heads) {
    std::vector<float> values(static_cast<std::size_t>(num_tokens * num_heads * kHeadDim));
    for (float& value : values) value = uniform(generator);
    return Tensor::FromFloats(values, {num_tokens, num_heads, kHeadDim});
  };
  return {random(kNumQHeads), random(kNumKvHeads), random(kNumKvHeads)};
}

// Appends and attends `num_tokens` in every layer.
absl::Status Forward(Session& session, std::int64_t num_tokens, std::mt19937& generator) {
  for (int layer = 0; layer < kNumLayers; ++layer) {
    const Rows rows = Project(num_tokens, generator);
    const absl::StatusOr<LayerStepResult> result =
        session.Step(layer, rows.q.view(), rows.k.view(), rows.v.view(), {.is_causal = true});
    if (!result.ok()) return result.status();
    std::printf("layer %d: %3lld tokens cached, first output %+.4f, computed in %s\n", layer,
                static_cast<long long>(result->position),
                static_cast<double>(result->output.floats()[0]),
                absl::FormatDuration(result->timing.compute).c_str());
  }
  return absl::OkStatus();
}

absl::Status Run(const ClientOptions& connection) {
  absl::StatusOr<std::shared_ptr<Client>> client = Client::Connect(connection);
  if (!client.ok()) return client.status();

  SessionOptions options;
  options.geometry = {.num_layers = kNumLayers,
                      .num_kv_heads = kNumKvHeads,
                      .head_dim_qk = kHeadDim,
                      .head_dim_v = kHeadDim,
                      .kv_dtype = DType::kBFloat16};
  options.expected_tokens = kPromptTokens + kNewTokens;
  absl::StatusOr<Session> session = (*client)->CreateSession(options);
  if (!session.ok()) return session.status();

  std::mt19937 generator(1);
  absl::Status status = Forward(*session, kPromptTokens, generator);
  for (int token = 0; token < kNewTokens && status.ok(); ++token) {
    status = Forward(*session, 1, generator);
  }
  status.Update(session->Delete());
  return status;
}

}  // namespace

int main(int argc, char** argv) {
  int exit_code = 0;
  const auto options = ParseConnection(argc, argv, "attention-session-decode",
                                       "A decoder's attention, token by token", &exit_code);
  if (!options.has_value()) return exit_code;
  const absl::Status status = Run(*options);
  if (status.ok()) return 0;
  const std::string reason = ErrorReason(status).value_or("no reason given");
  std::fprintf(stderr, "%s (%s)\n", status.ToString().c_str(), reason.c_str());
  return 1;
}
