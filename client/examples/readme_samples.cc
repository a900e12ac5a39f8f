// The samples of README.md and docs/: tests/lint/check_readme.py holds the pages to the text
// between the markers. Runs each against --target and prints the shape of what came back.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "attention/client/client.h"
#include "attention/client/errors.h"
#include "attention/client/merge.h"
#include "client/flags/connection_flags.h"

namespace {

using attention::client::AttendRequest;
using attention::client::AttendResult;
using attention::client::Client;
using attention::client::ClientOptions;
using attention::client::DType;
using attention::client::ErrorReason;
using attention::client::Shape;
using attention::client::Tensor;
using attention::client::TensorView;
using attention::client::TlsOptions;

Tensor RandomTensor(Shape shape, std::uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<std::size_t>(attention::client::NumElements(shape)));
  for (float& value : values) value = normal(random);
  return Tensor::FromFloats(values, std::move(shape));
}

template <typename T>
T OrExit(absl::StatusOr<T> result, const char* what) {
  if (result.ok()) return *std::move(result);
  std::fprintf(stderr, "%s: %s\n", what, result.status().ToString().c_str());
  std::exit(1);
}

void Print(const char* what, const Tensor& output) {
  std::printf("%-22s [", what);
  for (std::size_t i = 0; i < output.shape().size(); ++i) {
    std::printf("%s%lld", i == 0 ? "" : ", ", static_cast<long long>(output.shape()[i]));
  }
  std::printf("]\n");
}

void Variants(Client& client_ref) {
  Client* client = &client_ref;
  const Tensor q1_tensor = RandomTensor({128, 1, 64}, 1);
  const Tensor q8_tensor = RandomTensor({128, 8, 64}, 2);
  const Tensor kv1_tensor = RandomTensor({128, 1, 64}, 3);
  const Tensor kv2_tensor = RandomTensor({128, 2, 64}, 4);
  const Tensor kv8_tensor = RandomTensor({128, 8, 64}, 5);
  const Tensor image_tensor = RandomTensor({196, 8, 64}, 6);
  const TensorView q1 = q1_tensor.view(), k1 = kv1_tensor.view(), v1 = k1;
  const TensorView q = q8_tensor.view(), k = kv8_tensor.view(), v = k;
  const TensorView k2 = kv2_tensor.view(), v2 = k2;
  const TensorView image_k = image_tensor.view(), image_v = image_k;

  // The pages break lines by sense.
  // clang-format off
  // [variants]
  // Scaled dot-product attention: q [128, 1, 64], k and v [128, 1, 64].
  auto scaled = client->Attend({.q = q1, .k = k1, .v = v1});
  // Multi-head: as many KV heads as query heads. q, k and v [128, 8, 64].
  auto multi_head = client->Attend({.q = q, .k = k, .v = v});
  // Cross: queries of one sequence, keys and values of another. image_k and image_v [196, 8, 64].
  auto cross = client->Attend({.q = q, .k = image_k, .v = image_v});
  // Causal: a query sees its own position and what came before.
  auto causal = client->Attend({.q = q, .k = k, .v = v, .config = {.is_causal = true}});
  // Sliding window of 32 tokens; the first 4 stay visible.
  auto sliding = client->Attend({.q = q, .k = k, .v = v,
      .config = {.is_causal = true, .window_left = 31, .sink_tokens = 4}});
  // Multi-query: one KV head, k1 and v1 [128, 1, 64].
  auto multi_query = client->Attend({.q = q, .k = k1, .v = v1, .config = {.is_causal = true}});
  // Grouped-query: 8 query heads on 2 KV heads, k2 and v2 [128, 2, 64].
  auto grouped = client->Attend({.q = q, .k = k2, .v = v2, .config = {.is_causal = true}});
  // [end]
  // clang-format on

  Print("scaled dot-product", OrExit(std::move(scaled), "scaled").output);
  Print("multi-head", OrExit(std::move(multi_head), "multi-head").output);
  Print("cross", OrExit(std::move(cross), "cross").output);
  Print("causal", OrExit(std::move(causal), "causal").output);
  Print("sliding window", OrExit(std::move(sliding), "sliding").output);
  Print("multi-query", OrExit(std::move(multi_query), "multi-query").output);
  Print("grouped-query", OrExit(std::move(grouped), "grouped").output);
}

// As the flags say, for servers that encrypt.
absl::Status Secure(const ClientOptions& flags) {
  const std::string target = flags.targets[0], ca_file = flags.tls->ca_file;
  const std::string token_file = flags.token.file;

  // clang-format off
  // [secure]
  ClientOptions options = {.targets = {target}};
  options.tls = TlsOptions{.ca_file = ca_file};  // TlsOptions{}: the system's authorities
  options.token.file = token_file;               // read again when it changes
  auto client = Client::Connect(options);        // INVALID_ARGUMENT names what is wrong with an option
  if (!client.ok()) return client.status();
  // Says whether a port is closed, a certificate is wrong, or the token is refused.
  absl::Status ready = (*client)->WaitUntilReady(absl::Seconds(10));
  // [end]
  // clang-format on

  return ready;
}

absl::Status InPlace(Client& client_ref) {
  Client* client = &client_ref;
  const Tensor values = RandomTensor({1024, 8, 64}, 11);

  // clang-format off
  // [shared]
  auto q = client->AllocateShared(DType::kFloat32, {1024, 8, 64});
  if (!q.ok()) return q.status();
  // To be written before the call, and left alone until it is answered.
  std::copy(values.floats().begin(), values.floats().end(), q->floats().begin());
  auto self = client->Attend({.q = q->view(), .k = q->view(), .v = q->view()});
  // The output lies where the server wrote it. It goes into the next call without a copy, too.
  if (!self.ok()) return self.status();
  auto next = client->Attend({.q = self->output.view(), .k = q->view(), .v = q->view()});
  // [end]
  // clang-format on

  Print("in place", OrExit(std::move(next), "in place").output);
  return absl::OkStatus();
}

absl::Status Decode(Client& client_ref) {
  Client* client = &client_ref;
  const Tensor q_tensor = RandomTensor({16, 8, 64}, 7);
  const Tensor kv_tensor = RandomTensor({16, 2, 64}, 8);
  const Tensor next_q_tensor = RandomTensor({1, 8, 64}, 9);
  const Tensor next_kv_tensor = RandomTensor({1, 2, 64}, 10);
  const TensorView prompt_q = q_tensor.view(), prompt_k = kv_tensor.view(), prompt_v = prompt_k;
  const TensorView q = next_q_tensor.view(), k = next_kv_tensor.view(), v = k;

  // clang-format off
  // [session]
  auto session = client->CreateSession({.geometry = {
      .num_layers = 32, .num_kv_heads = 2, .head_dim_qk = 64, .head_dim_v = 64}});
  if (!session.ok()) return session.status();

  // The prompt, then token by token: each step appends k and v and attends over all so far. A step
  // that failed on the way may be repeated; its rows are never appended twice.
  auto prompt = session->Step(/*layer=*/0, prompt_q, prompt_k, prompt_v, {.is_causal = true});
  auto token = session->Step(/*layer=*/0, q, k, v, {.is_causal = true});
  if (!token.ok()) {
    if (ErrorReason(token.status()) == attention::client::kSessionExpired) { /* start over */ }
    return token.status();
  }
  // [end]
  // clang-format on

  Print("prompt", OrExit(std::move(prompt), "prompt").output);
  Print("token", token->output);
  return session->Delete();
}

absl::Status Layers(Client& client_ref) {
  Client* client = &client_ref;
  const Tensor weights = RandomTensor({256, 256}, 11);
  const Tensor rows = RandomTensor({16, 256}, 12);
  const TensorView w_q = weights.view(), w_k = w_q, w_v = w_q, w_o = w_q, x = rows.view();

  // clang-format off
  // [layer]
  auto layer = client->CreateLayer({
      .config = {.model_dim = 256, .num_q_heads = 8, .head_dim_qk = 32, .attention = {.is_causal = true}},
      .weights = {.w_q = w_q, .w_k = w_k, .w_v = w_v, .w_o = w_o}});  // [out_features, in_features]
  if (!layer.ok()) return layer.status();
  auto y = layer->Forward({.x = x});  // x [tokens, 256], y->output [tokens, 256]
  // [end]
  // clang-format on

  Print("layer", OrExit(std::move(y), "layer").output);
  return layer->Delete();
}

}  // namespace

int main(int argc, char** argv) {
  int exit_code = 0;
  const auto options = attention::client::ParseConnection(
      argc, argv, "attention-readme-samples", "Runs the samples of the documents", &exit_code);
  if (!options.has_value()) return exit_code;
  absl::Status status = options->tls.has_value() ? Secure(*options) : absl::OkStatus();
  auto client = OrExit(Client::Connect(*options), "connect");
  Variants(*client);
  status.Update(InPlace(*client));
  status.Update(Decode(*client));
  status.Update(Layers(*client));
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.ToString().c_str());
  return status.ok() ? 0 : 1;
}
