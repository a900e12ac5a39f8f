// --workload prefill and decode: each virtual user drives one session after another. A session
// begins with a context that is appended without attending, then takes steps that append their rows
// and attend; each step of each layer is one request. Prefill is the case without context and with
// one step of many rows; decode has a context and many steps of one row. Sessions end with a stream
// that stays open meanwhile, so that a load generator that is killed leaves nothing in the server.
#pragma once

#include <memory>
#include <optional>
#include <random>
#include <vector>

#include "client/loadgen/step_streams.h"
#include "client/loadgen/workload.h"

namespace attention::loadgen {

// Rows of a context that travel in one call: a few MiB, so that filling long contexts neither meets
// the server's message limit nor holds up other requests for long.
std::int64_t ContextChunkRows(const AttentionCase& request);

class SessionWorkload final : public Workload {
 public:
  SessionWorkload(const Options& options, const TensorPool& pool,
                  std::shared_ptr<client::Client> client);

  int num_users() const override { return static_cast<int>(users_.size()); }
  bool IsReady(int user) const override { return At(user).is_ready; }
  void Prepare(int user, const client::CallOptions& call, client::StatusCallback done) override;
  void Send(int user, const client::CallOptions& call, AnswerCallback done) override;
  void Close(int user, const client::CallOptions& call, client::StatusCallback done) override;

 private:
  struct User {
    std::mt19937_64 random;
    std::optional<client::Session> session;
    bool is_ready = false;
    std::int64_t steps = 0;  // completed in every layer
    int next_layer = 0;
    // By layer, in the pool. [num_layers]
    std::vector<std::int64_t> k_offsets;
    std::vector<std::int64_t> v_offsets;
  };

  User& At(int user) { return users_[static_cast<std::size_t>(user)]; }
  const User& At(int user) const { return users_[static_cast<std::size_t>(user)]; }

  void Create(int user, const client::CallOptions& call, client::StatusCallback done);
  // Appends the next chunk of the first layer whose context is not complete, and so on until all
  // are.
  void AppendContext(User& user, const client::CallOptions& call, client::StatusCallback done);
  // Rows of layer `layer` of the user's session from its position on.
  client::LayerStep MakeAppend(const User& user, int layer, std::int64_t rows) const;
  // Sends a step as a call of its own or on the user's stream.
  void SendStep(int user, const client::SessionStep& step, const client::CallOptions& call,
                client::Callback<client::StepResult> done);
  // Counts a successful step; the session has done its work after the last.
  void FinishStep(User& user);

  const ShapeOptions shape_;
  const std::int64_t context_;
  const std::int64_t steps_per_session_;
  const int num_layers_;
  const TensorPool& pool_;
  const std::shared_ptr<client::Client> client_;
  StepStreams homes_;                           // that sessions end with: one for each target
  const std::unique_ptr<StepStreams> streams_;  // null: calls
  std::vector<User> users_;
};

}  // namespace attention::loadgen
