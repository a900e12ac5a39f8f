#include <utility>

#include "absl/strings/str_cat.h"
#include "client/internal/convert.h"
#include "client/internal/error_details.h"
#include "client/internal/status_macros.h"

namespace attention::client::internal {
namespace {

absl::Time FromProto(const google::protobuf::Timestamp& message) {
  return absl::FromUnixSeconds(message.seconds()) + absl::Nanoseconds(message.nanos());
}

absl::StatusOr<SessionGeometry> FromProto(const v1::SessionGeometry& message) {
  SessionGeometry geometry{.num_layers = message.num_layers(),
                           .num_kv_heads = message.num_kv_heads(),
                           .head_dim_qk = message.head_dim_qk(),
                           .head_dim_v = message.head_dim_v()};
  ATTN_ASSIGN_OR_RETURN(geometry.kv_dtype, internal::FromProto(message.kv_dtype()));
  return geometry;
}

SessionHandle FromProto(const v1::SessionHandle& message) {
  return {.worker = message.worker(),
          .worker_epoch = message.worker_epoch(),
          .session_id = message.session_id()};
}

absl::Status StepTensorsToProto(const SessionStep& step, const std::string& prefix,
                                v1::SessionStep* message) {
  const auto convert = [&prefix](const TensorView& tensor, const char* field, auto mutable_field) {
    if (!tensor.is_present()) return absl::OkStatus();
    return internal::ToProto(tensor, absl::StrCat(prefix, field), mutable_field());
  };
  ATTN_RETURN_IF_ERROR(convert(step.k, "k", [&] { return message->mutable_k(); }));
  ATTN_RETURN_IF_ERROR(convert(step.v, "v", [&] { return message->mutable_v(); }));
  ATTN_RETURN_IF_ERROR(convert(step.q, "q", [&] { return message->mutable_q(); }));
  ATTN_RETURN_IF_ERROR(convert(step.bias, "bias", [&] { return message->mutable_bias(); }));
  return convert(step.mask, "mask", [&] { return message->mutable_mask(); });
}

absl::Status ToProto(const SessionStep& step, const std::string& prefix, v1::SessionStep* message) {
  internal::ToProto(step.handle, message->mutable_handle());
  message->set_layer(step.layer);
  if (step.expected_position.has_value()) message->set_expected_position(*step.expected_position);
  if (step.first_query_position.has_value()) {
    message->set_first_query_position(*step.first_query_position);
  }
  message->set_kv_begin(step.kv_begin);
  if (step.kv_end.has_value()) message->set_kv_end(*step.kv_end);
  internal::ToProto(step.returns, message->mutable_returns());
  ATTN_RETURN_IF_ERROR(internal::ToProto(step.config, message->mutable_config()));
  return StepTensorsToProto(step, prefix, message);
}

absl::StatusOr<SessionStepResult> FromProto(v1::SessionStepResult&& message) {
  SessionStepResult result;
  if (message.has_error()) result.status = FromStreamError(message.error());
  result.position = message.position();
  result.is_replay = message.is_replay();
  if (message.has_output()) {
    ATTN_ASSIGN_OR_RETURN(result.output, internal::FromProto(std::move(*message.mutable_output())));
  }
  if (message.has_lse()) {
    ATTN_ASSIGN_OR_RETURN(result.lse, internal::FromProto(std::move(*message.mutable_lse())));
  }
  if (message.has_column_sums()) {
    ATTN_ASSIGN_OR_RETURN(result.column_sums,
                          internal::FromProto(std::move(*message.mutable_column_sums())));
  }
  return result;
}

}  // namespace

void ToProto(const SessionHandle& handle, v1::SessionHandle* message) {
  message->set_worker(handle.worker);
  message->set_worker_epoch(handle.worker_epoch);
  message->set_session_id(handle.session_id);
}

void ToProto(const SessionOptions& options, v1::CreateSessionRequest* message) {
  v1::SessionGeometry* geometry = message->mutable_geometry();
  geometry->set_num_layers(options.geometry.num_layers);
  geometry->set_num_kv_heads(options.geometry.num_kv_heads);
  geometry->set_head_dim_qk(options.geometry.head_dim_qk);
  geometry->set_head_dim_v(options.geometry.head_dim_v);
  geometry->set_kv_dtype(ToProto(options.geometry.kv_dtype));
  if (options.ttl.has_value()) ToProto(*options.ttl, message->mutable_ttl());
  message->set_expected_tokens(options.expected_tokens);
}

absl::StatusOr<SessionInfo> FromProto(v1::Session&& message) {
  SessionInfo info;
  info.handle = FromProto(message.handle());
  ATTN_ASSIGN_OR_RETURN(info.geometry, FromProto(message.geometry()));
  info.layer_lengths.assign(message.layer_lengths().begin(), message.layer_lengths().end());
  info.committed_length = message.committed_length();
  info.kv_bytes = message.kv_bytes();
  info.ttl = FromProto(message.ttl());
  info.create_time = FromProto(message.create_time());
  info.expire_time = FromProto(message.expire_time());
  return info;
}

absl::StatusOr<ListSessionsResult> FromProto(v1::ListSessionsResponse&& message) {
  ListSessionsResult result;
  result.sessions.reserve(static_cast<size_t>(message.sessions_size()));
  for (v1::Session& session : *message.mutable_sessions()) {
    ATTN_ASSIGN_OR_RETURN(SessionInfo info, FromProto(std::move(session)));
    result.sessions.push_back(std::move(info));
  }
  result.next_page_token = std::move(*message.mutable_next_page_token());
  return result;
}

absl::Status ToProto(const StepRequest& request, v1::StepRequest* message) {
  for (size_t i = 0; i < request.steps.size(); ++i) {
    ATTN_RETURN_IF_ERROR(
        ToProto(request.steps[i], absl::StrCat("steps[", i, "]."), message->add_steps()));
  }
  return absl::OkStatus();
}

absl::StatusOr<StepResult> FromProto(v1::StepResponse&& message) {
  StepResult result;
  result.results.reserve(static_cast<size_t>(message.results_size()));
  for (v1::SessionStepResult& step : *message.mutable_results()) {
    ATTN_ASSIGN_OR_RETURN(SessionStepResult converted, FromProto(std::move(step)));
    result.results.push_back(std::move(converted));
  }
  result.timing = FromProto(message.timing());
  return result;
}

}  // namespace attention::client::internal
