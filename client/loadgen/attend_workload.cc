#include "client/loadgen/attend_workload.h"

#include <utility>

namespace attention::loadgen {
namespace {

std::int64_t DrawOffset(std::mt19937_64& random) {
  return static_cast<std::int64_t>(random() % TensorPool::kPeriod);
}

client::AttendRequest MakeRequest(const TensorPool& pool, const AttentionCase& request) {
  const ShapeOptions& shape = request.shape;
  client::AttendRequest message;
  message.q = pool.View(request.q_offset, {shape.q_len, shape.num_q_heads, shape.head_dim_qk});
  message.k = pool.View(request.k_offset, {shape.kv_len, shape.num_kv_heads, shape.head_dim_qk});
  message.v = pool.View(request.v_offset, {shape.kv_len, shape.num_kv_heads, shape.head_dim_v});
  message.config = ConfigOf(shape);
  return message;
}

ShapeOptions WithoutCache(ShapeOptions shape) {
  shape.kv_dtype.reset();
  return shape;
}

}  // namespace

AttendWorkload::AttendWorkload(const Options& options, const TensorPool& pool,
                               std::shared_ptr<client::Client> client)
    : shape_(WithoutCache(options.shape)), pool_(pool), client_(std::move(client)) {
  for (int user = 0; user < options.in_flight_limit(); ++user) {
    std::seed_seq seed{options.seed, static_cast<std::uint64_t>(user)};
    users_.emplace_back(seed);
  }
}

void AttendWorkload::Prepare(int, const client::CallOptions&, client::StatusCallback done) {
  done(absl::OkStatus());
}

void AttendWorkload::Send(int user, const client::CallOptions& call, AnswerCallback done) {
  std::mt19937_64& random = users_[static_cast<std::size_t>(user)];
  AttentionCase request = {.shape = shape_};
  request.q_offset = DrawOffset(random);
  request.k_offset = DrawOffset(random);
  request.v_offset = DrawOffset(random);
  client_->AttendAsync(
      MakeRequest(pool_, request), call,
      [request, done = std::move(done)](absl::StatusOr<client::AttendResult> result) {
        if (!result.ok()) return done(result.status());
        done(Answer{.output = std::move(result->output),
                    .timing = result->timing,
                    .request = request,
                    .work = WorkOf(request, request.shape.kv_len)});
      });
}

void AttendWorkload::Close(int, const client::CallOptions&, client::StatusCallback done) {
  done(absl::OkStatus());
}

}  // namespace attention::loadgen
