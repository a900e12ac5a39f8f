#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "attention/client/client.h"
#include "client/examples/smollm2_attention.h"

namespace attention::examples {
namespace {

using client::Client;
using client::Session;
using client::StepStream;
using client::TensorView;

class RemoteAttention final : public ModelAttention {
 public:
  RemoteAttention(const AttentionShape& shape, std::vector<Session> sessions,
                  std::unique_ptr<StepStream> stream)
      : shape_(shape), sessions_(std::move(sessions)), stream_(std::move(stream)) {}

  absl::Status Attend(std::span<const SequenceRows> sequences, int layer, const LayerRows& rows,
                      float* output) override {
    client::StepRequest request;  // of all sequences: they share one batch
    LayerRows next = rows;
    for (const auto& [sequence, num_rows] : sequences) {
      auto step = sessions_[sequence].MakeStep({.layer = layer,
                                                .q = View(next.q, num_rows, shape_.num_q_heads),
                                                .k = View(next.k, num_rows, shape_.num_kv_heads),
                                                .v = View(next.v, num_rows, shape_.num_kv_heads),
                                                .config = {.is_causal = true}});
      if (!step.ok()) return step.status();
      request.steps.push_back(*std::move(step));
      next.q += num_rows * shape_.num_q_heads * shape_.head_dim;
      next.k += num_rows * shape_.num_kv_heads * shape_.head_dim;
      next.v += num_rows * shape_.num_kv_heads * shape_.head_dim;
    }
    const auto answer = stream_->Step(request);
    if (!answer.ok()) return answer.status();
    for (std::size_t i = 0; i < sequences.size(); ++i) {
      const client::SessionStepResult& result = answer->results[i];
      const absl::Status status = sessions_[sequences[i].sequence].Accept(request.steps[i], result);
      if (!status.ok()) return status;
      output = std::ranges::copy(result.output.floats(), output).out;
    }
    return absl::OkStatus();
  }

  absl::Status Close() override {
    absl::Status status = stream_->Finish();
    for (Session& session : sessions_) status.Update(session.Delete());
    return status;
  }

 private:
  TensorView View(const float* data, std::int64_t num_rows, int num_heads) const {
    return TensorView(data, client::DType::kFloat32, {num_rows, num_heads, shape_.head_dim});
  }

  const AttentionShape shape_;
  std::vector<Session> sessions_;
  std::unique_ptr<StepStream> stream_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<ModelAttention>> MakeRemoteAttention(
    const client::ClientOptions& connection, const AttentionShape& shape, int num_sequences) {
  auto client = Client::Connect(connection);
  if (!client.ok()) return client.status();
  std::vector<Session> sessions;
  for (int i = 0; i < num_sequences; ++i) {
    auto session = (*client)->CreateSession({.geometry = {.num_layers = shape.num_layers,
                                                          .num_kv_heads = shape.num_kv_heads,
                                                          .head_dim_qk = shape.head_dim,
                                                          .head_dim_v = shape.head_dim}});
    if (!session.ok()) return session.status();
    sessions.push_back(*std::move(session));
  }
  auto stream = (*client)->OpenStepStream();
  if (!stream.ok()) return stream.status();
  return std::make_unique<RemoteAttention>(shape, std::move(sessions), *std::move(stream));
}

}  // namespace attention::examples
