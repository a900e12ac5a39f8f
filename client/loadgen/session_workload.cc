#include "client/loadgen/session_workload.h"

#include <algorithm>
#include <utility>

namespace attention::loadgen {
namespace {

constexpr std::int64_t kContextChunkBytes = std::int64_t{2}
                                            << 20;  // of keys, and as much of values

std::int64_t DrawOffset(std::mt19937_64& random) {
  return static_cast<std::int64_t>(random() % TensorPool::kPeriod);
}

// A step request of one session, whose single result decides.
absl::Status Accept(client::Session& session, const client::SessionStep& step,
                    const absl::StatusOr<client::StepResult>& result) {
  if (!result.ok()) return result.status();
  if (result->results.size() != 1) {
    return absl::InternalError("the answer to one step does not hold exactly one result");
  }
  return session.Accept(step, result->results.front());
}

}  // namespace

std::int64_t ContextChunkRows(const AttentionCase& request) {
  const std::int64_t row_bytes = std::max(request.k_row(), request.v_row()) *
                                 static_cast<std::int64_t>(DTypeBytes(request.shape.dtype));
  return std::max<std::int64_t>(1, kContextChunkBytes / row_bytes);
}

SessionWorkload::SessionWorkload(const Options& options, const TensorPool& pool,
                                 std::shared_ptr<client::Client> client)
    : shape_(options.shape),
      context_(options.workload == WorkloadKind::kDecode ? options.context : 0),
      steps_per_session_(options.workload == WorkloadKind::kDecode ? options.decode_tokens : 1),
      num_layers_(options.layers),
      pool_(pool),
      client_(std::move(client)),
      homes_(client_, static_cast<int>(options.targets.size()),
             static_cast<int>(options.targets.size()), std::max(options.sessions, 1)),
      streams_(options.streams > 0
                   ? std::make_unique<StepStreams>(client_, options.streams,
                                                   /*num_targets=*/1, std::max(options.sessions, 1))
                   : nullptr),
      users_(static_cast<std::size_t>(options.sessions)) {
  for (std::size_t i = 0; i < users_.size(); ++i) {
    std::seed_seq seed{options.seed, static_cast<std::uint64_t>(i)};
    users_[i].random.seed(seed);
  }
}

void SessionWorkload::Prepare(int index, const client::CallOptions& call,
                              client::StatusCallback done) {
  User& user = At(index);
  if (!user.session.has_value()) return Create(index, call, std::move(done));
  // A session that cannot be deleted (its server is gone, say) must not stop the next one from
  // being made; the server drops it after its TTL.
  Close(index, call, [this, index, call, done = std::move(done)](const absl::Status&) {
    Create(index, call, done);
  });
}

void SessionWorkload::Create(int index, const client::CallOptions& call,
                             client::StatusCallback done) {
  const auto home = homes_.Of(index, call);
  if (!home.ok()) return done(home.status());
  User& user = At(index);
  client::SessionOptions request;
  request.geometry = {.num_layers = num_layers_,
                      .num_kv_heads = shape_.num_kv_heads,
                      .head_dim_qk = shape_.head_dim_qk,
                      .head_dim_v = shape_.head_dim_v,
                      .kv_dtype = ToClientDType(shape_.kv_dtype.value_or(shape_.dtype))};
  (*home)->CreateSessionAsync(request, [this, &user, call, done = std::move(done)](
                                           absl::StatusOr<client::SessionInfo> info) {
    if (!info.ok()) return done(info.status());
    user.session.emplace(client_->OpenSession(*std::move(info)));
    user.steps = 0;
    user.next_layer = 0;
    user.k_offsets.clear();
    user.v_offsets.clear();
    for (int layer = 0; layer < num_layers_; ++layer) {
      user.k_offsets.push_back(DrawOffset(user.random));
      user.v_offsets.push_back(DrawOffset(user.random));
    }
    AppendContext(user, call, done);
  });
}

client::LayerStep SessionWorkload::MakeAppend(const User& user, int layer,
                                              std::int64_t rows) const {
  const AttentionCase row = {.shape = shape_};
  const std::int64_t position = user.session->position(layer);
  const auto index = static_cast<std::size_t>(layer);
  client::LayerStep step;
  step.layer = layer;
  step.k = pool_.View(user.k_offsets[index] + position * row.k_row(),
                      {rows, shape_.num_kv_heads, shape_.head_dim_qk});
  step.v = pool_.View(user.v_offsets[index] + position * row.v_row(),
                      {rows, shape_.num_kv_heads, shape_.head_dim_v});
  return step;
}

void SessionWorkload::AppendContext(User& user, const client::CallOptions& call,
                                    client::StatusCallback done) {
  int layer = 0;
  while (layer < num_layers_ && user.session->position(layer) >= context_) ++layer;
  if (layer == num_layers_) {
    user.is_ready = true;
    return done(absl::OkStatus());
  }
  const std::int64_t left = context_ - user.session->position(layer);
  const std::int64_t rows = std::min(left, ContextChunkRows({.shape = shape_}));
  auto step = user.session->MakeStep(MakeAppend(user, layer, rows));
  if (!step.ok()) return done(step.status());
  client_->StepAsync({.steps = {*step}}, call,
                     [this, &user, call, step = *step,
                      done = std::move(done)](const absl::StatusOr<client::StepResult>& result) {
                       const absl::Status status = Accept(*user.session, step, result);
                       if (!status.ok()) return done(status);
                       AppendContext(user, call, done);
                     });
}

void SessionWorkload::FinishStep(User& user) {
  if (++user.next_layer < num_layers_) return;
  user.next_layer = 0;
  ++user.steps;
  if (user.steps == steps_per_session_) user.is_ready = false;
}

void SessionWorkload::SendStep(int user, const client::SessionStep& step,
                               const client::CallOptions& call,
                               client::Callback<client::StepResult> done) {
  if (streams_ == nullptr) return client_->StepAsync({.steps = {step}}, call, std::move(done));
  const auto stream = streams_->Of(user, call);
  if (!stream.ok()) return done(stream.status());
  (*stream)->StepAsync({.steps = {step}}, std::move(done));
}

void SessionWorkload::Send(int index, const client::CallOptions& call, AnswerCallback done) {
  User& user = At(index);
  const int layer = user.next_layer;
  AttentionCase request = {.shape = shape_, .layer = layer};
  request.shape.kv_len = user.session->position(layer) + shape_.q_len;
  request.q_offset = DrawOffset(user.random);
  request.k_offset = user.k_offsets[static_cast<std::size_t>(layer)];
  request.v_offset = user.v_offsets[static_cast<std::size_t>(layer)];

  client::LayerStep layer_step = MakeAppend(user, layer, shape_.q_len);
  layer_step.q =
      pool_.View(request.q_offset, {shape_.q_len, shape_.num_q_heads, shape_.head_dim_qk});
  layer_step.config = ConfigOf(shape_);
  auto step = user.session->MakeStep(layer_step);
  if (!step.ok()) return done(step.status());
  SendStep(index, *step, call,
           [this, &user, step = *step, request,
            done = std::move(done)](absl::StatusOr<client::StepResult> result) {
             const absl::Status status = Accept(*user.session, step, result);
             if (!status.ok()) {
               // The session's state in the server is no longer certain: begin anew with another
               // session. A refusal was not applied, so it may simply be sent again.
               if (!absl::IsResourceExhausted(status)) user.is_ready = false;
               return done(status);
             }
             FinishStep(user);
             done(Answer{.output = std::move(result->results.front().output),
                         .timing = result->timing,
                         .request = request,
                         .work = WorkOf(request, request.shape.q_len)});
           });
}

void SessionWorkload::Close(int index, const client::CallOptions& call,
                            client::StatusCallback done) {
  User& user = At(index);
  user.is_ready = false;
  if (!user.session.has_value()) return done(absl::OkStatus());
  const client::SessionHandle handle = user.session->handle();
  user.session.reset();
  client_->DeleteSessionAsync(handle, call, std::move(done));
}

}  // namespace attention::loadgen
