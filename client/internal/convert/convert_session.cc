#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/internal/base/status_macros.h"
#include "client/internal/convert/convert.h"
#include "client/internal/convert/error_details.h"

namespace attention::client::internal {
namespace {

absl::Time FromProto(const google::protobuf::Timestamp& message) {
  return absl::FromUnixSeconds(message.seconds()) + absl::Nanoseconds(message.nanos());
}

// SessionGeometry and LayerShape name these fields alike.
template <typename Shape, typename Message>
absl::Status ShapeFromProto(const Message& message, Shape& shape) {
  shape.num_kv_heads = message.num_kv_heads();
  shape.head_dim_qk = message.head_dim_qk();
  shape.head_dim_v = message.head_dim_v();
  ATTENTION_CLIENT_ASSIGN_OR_RETURN(shape.kv_dtype, internal::FromProto(message.kv_dtype()));
  shape.value_is_key_prefix = message.value_is_key_prefix();
  shape.window_tokens = message.window_tokens();
  shape.sink_tokens = message.sink_tokens();
  return absl::OkStatus();
}

template <typename Shape, typename Message>
void ShapeToProto(const Shape& shape, Message* message) {
  message->set_num_kv_heads(shape.num_kv_heads);
  message->set_head_dim_qk(shape.head_dim_qk);
  message->set_head_dim_v(shape.head_dim_v);
  message->set_kv_dtype(ToProto(shape.kv_dtype));
  message->set_value_is_key_prefix(shape.value_is_key_prefix);
  message->set_window_tokens(shape.window_tokens);
  message->set_sink_tokens(shape.sink_tokens);
}

absl::StatusOr<SessionGeometry> FromProto(const v1::SessionGeometry& message) {
  SessionGeometry geometry;
  geometry.num_layers = message.num_layers();
  for (const v1::LayerShape& layer : message.layers()) {
    if (absl::Status status = ShapeFromProto(layer, geometry.layers.emplace_back()); !status.ok()) {
      return status;
    }
  }
  if (!geometry.layers.empty()) return geometry;
  if (absl::Status status = ShapeFromProto(message, geometry); !status.ok()) return status;
  return geometry;
}

void ToProto(const SessionGeometry& geometry, v1::SessionGeometry* message) {
  for (const LayerShape& layer : geometry.layers) ShapeToProto(layer, message->add_layers());
  if (!geometry.layers.empty()) return;
  message->set_num_layers(geometry.num_layers);
  ShapeToProto(geometry, message);
}

SessionHandle FromProto(const v1::SessionHandle& message) {
  return {.server_name = message.server_name(),
          .server_epoch = message.server_epoch(),
          .session_id = message.session_id(),
          .writer = message.writer()};
}

SessionState FromProto(v1::SessionState state) {
  if (state == v1::SESSION_STATE_BUSY) return SessionState::kBusy;
  return state == v1::SESSION_STATE_SPILLED ? SessionState::kSpilled : SessionState::kIdle;
}

v1::SessionState ToProto(SessionState state) {
  if (state == SessionState::kBusy) return v1::SESSION_STATE_BUSY;
  return state == SessionState::kSpilled ? v1::SESSION_STATE_SPILLED : v1::SESSION_STATE_IDLE;
}

// Ancestors of rows by the row that each of them follows, as v1::DraftTree packs them.
absl::StatusOr<std::string> PackAncestors(const std::vector<int>& parents, std::size_t step) {
  const std::size_t row_bytes = (parents.size() + 7) / 8;
  std::string packed(parents.size() * row_bytes, '\0');
  for (std::size_t row = 0; row < parents.size(); ++row) {
    const int parent = parents[row];
    if (parent < -1 || parent >= static_cast<int>(row)) {
      return absl::InvalidArgumentError(absl::StrCat("steps[", step, "].parents[", row,
                                                     "]: ", parent, ", expected -1 to ",
                                                     static_cast<int>(row) - 1));
    }
    char* bits = packed.data() + row * row_bytes;
    if (parent >= 0) {
      const char* ancestors = packed.data() + static_cast<std::size_t>(parent) * row_bytes;
      std::copy_n(ancestors, row_bytes, bits);
    }
    bits[row / 8] = static_cast<char>(static_cast<unsigned char>(bits[row / 8]) | 1u << row % 8);
  }
  return packed;
}

// The step of this index in its request.
absl::StatusOr<codec::OutgoingMessage> ToWire(const SessionStep& step, std::size_t index,
                                              const TensorRefs* refs) {
  using Wire = v1::SessionStep;
  Wire small_fields;
  internal::ToProto(step.handle, small_fields.mutable_handle());
  small_fields.set_layer(step.layer);
  if (step.expected_position.has_value()) {
    small_fields.set_expected_position(*step.expected_position);
  }
  if (step.first_query_position.has_value()) {
    small_fields.set_first_query_position(*step.first_query_position);
  }
  small_fields.set_kv_begin(step.kv_begin);
  if (step.kv_end.has_value()) small_fields.set_kv_end(*step.kv_end);
  internal::ToProto(step.returns, small_fields.mutable_returns());
  if (!step.parents.empty()) {
    ATTENTION_CLIENT_ASSIGN_OR_RETURN(*small_fields.mutable_tree()->mutable_ancestors(),
                                      PackAncestors(step.parents, index));
  }
  if (refs != nullptr) {
    if (auto ref = refs->RefToOutput(index); ref.has_value()) {
      *small_fields.mutable_output_to() = *std::move(ref);
    }
  }
  codec::OutgoingMessage message(small_fields);
  ATTENTION_CLIENT_ASSIGN_OR_RETURN(codec::OutgoingMessage config,
                                    internal::ToWire(step.config, refs));
  message.Add(Wire::kConfigFieldNumber, std::move(config));
  const auto add = [&](const TensorView& tensor, const char* field, int field_number) {
    return AddTensor(tensor, absl::StrCat("steps[", index, "].", field), field_number, refs,
                     &message);
  };
  ATTENTION_CLIENT_RETURN_IF_ERROR(add(step.k, "k", Wire::kKFieldNumber));
  ATTENTION_CLIENT_RETURN_IF_ERROR(add(step.v, "v", Wire::kVFieldNumber));
  ATTENTION_CLIENT_RETURN_IF_ERROR(add(step.q, "q", Wire::kQFieldNumber));
  ATTENTION_CLIENT_RETURN_IF_ERROR(add(step.bias, "bias", Wire::kBiasFieldNumber));
  ATTENTION_CLIENT_RETURN_IF_ERROR(add(step.mask, "mask", Wire::kMaskFieldNumber));
  return message;
}

absl::StatusOr<SessionStepResult> FromWire(const v1::SessionStepResult& message,
                                           const codec::ReceivedMessage& received,
                                           const TensorRefs* refs) {
  SessionStepResult result;
  if (message.has_error()) result.status = FromStreamError(message.error());
  result.position = message.position();
  result.is_replay = message.is_replay();
  if (message.has_output()) {
    ATTENTION_CLIENT_ASSIGN_OR_RETURN(result.output,
                                      internal::FromWire(message.output(), received, refs));
  }
  if (message.has_lse()) {
    ATTENTION_CLIENT_ASSIGN_OR_RETURN(result.lse, internal::FromWire(message.lse(), received));
  }
  if (message.has_column_sums()) {
    ATTENTION_CLIENT_ASSIGN_OR_RETURN(result.column_sums,
                                      internal::FromWire(message.column_sums(), received));
  }
  if (message.has_weights()) {
    ATTENTION_CLIENT_ASSIGN_OR_RETURN(result.weights,
                                      internal::FromWire(message.weights(), received));
  }
  return result;
}

}  // namespace

void ToProto(const SessionHandle& handle, v1::SessionHandle* message) {
  message->set_server_name(handle.server_name);
  message->set_server_epoch(handle.server_epoch);
  message->set_session_id(handle.session_id);
  message->set_writer(handle.writer);
}

void ToProto(const SessionOptions& options, v1::CreateSessionRequest* message) {
  ToProto(options.geometry, message->mutable_geometry());
  if (options.ttl.has_value()) ToProto(*options.ttl, message->mutable_ttl());
  message->set_expected_tokens(options.expected_tokens);
  message->set_name(options.name);
  message->mutable_labels()->insert(options.labels.begin(), options.labels.end());
}

void ToProto(const ListSessionsRequest& request, v1::ListSessionsRequest* message) {
  message->set_page_size(request.page_size);
  message->set_name(request.name);
  message->mutable_labels()->insert(request.labels.begin(), request.labels.end());
  if (request.state.has_value()) message->set_state(ToProto(*request.state));
}

void ToProto(const ForkSessionRequest& request, v1::ForkSessionRequest* message) {
  ToProto(request.handle, message->mutable_handle());
  if (request.length.has_value()) message->set_length(*request.length);
  message->set_num_copies(request.num_copies);
  for (const std::string& name : request.names) message->add_names(name);
  if (request.ttl.has_value()) ToProto(*request.ttl, message->mutable_ttl());
}

void ToProto(const ReorderSessionsRequest& request, v1::ReorderSessionsRequest* message) {
  for (const SessionHandle& handle : request.handles) ToProto(handle, message->add_handles());
  for (const int source : request.sources) message->add_sources(source);
  message->set_reorder_id(request.reorder_id);
}

absl::StatusOr<v1::KeepTokensRequest> ToProto(const KeepTokensRequest& request) {
  v1::KeepTokensRequest message;
  ToProto(request.handle, message.mutable_handle());
  for (std::size_t i = 0; i < request.keep.size(); ++i) {
    const KeptTokens& tokens = request.keep[i];
    const std::string field = absl::StrCat("keep[", i, "]");
    if (!tokens.num_tokens.has_value() || *tokens.num_tokens < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat(field, ".num_tokens: expected the tokens that the layer holds"));
    }
    v1::KeptTokens* kept = message.add_keep();
    if (tokens.layer.has_value()) kept->set_layer(*tokens.layer);
    if (tokens.kv_head.has_value()) kept->set_kv_head(*tokens.kv_head);
    kept->set_num_tokens(*tokens.num_tokens);
    std::string& bits = *kept->mutable_kept();
    bits.assign(static_cast<std::size_t>((*tokens.num_tokens + 7) / 8), '\0');
    std::int64_t least = 0;
    for (const std::int64_t token : tokens.tokens) {
      if (token < least || token >= *tokens.num_tokens) {
        return absl::InvalidArgumentError(absl::StrCat(field, ".tokens: ", token, ", expected ",
                                                       least, " to ", *tokens.num_tokens - 1));
      }
      bits[token / 8] = static_cast<char>(bits[token / 8] | 1 << (token % 8));
      least = token + 1;
    }
  }
  return message;
}

absl::StatusOr<SessionInfo> FromProto(v1::Session&& message) {
  SessionInfo info;
  info.handle = FromProto(message.handle());
  info.name = message.name();
  ATTENTION_CLIENT_ASSIGN_OR_RETURN(info.geometry, FromProto(message.geometry()));
  info.layer_lengths.assign(message.layer_lengths().begin(), message.layer_lengths().end());
  info.committed_length = message.committed_length();
  info.kv_bytes = message.kv_bytes();
  info.ttl = FromProto(message.ttl());
  info.create_time = FromProto(message.create_time());
  info.expire_time = FromProto(message.expire_time());
  info.labels.insert(message.labels().begin(), message.labels().end());
  info.state = FromProto(message.state());
  info.layer_tokens.assign(message.layer_tokens().begin(), message.layer_tokens().end());
  return info;
}

absl::StatusOr<ListSessionsResult> FromProto(v1::ListSessionsResponse&& message) {
  ListSessionsResult result;
  result.sessions.reserve(static_cast<std::size_t>(message.sessions_size()));
  for (v1::Session& session : *message.mutable_sessions()) {
    ATTENTION_CLIENT_ASSIGN_OR_RETURN(SessionInfo info, FromProto(std::move(session)));
    result.sessions.push_back(std::move(info));
  }
  result.next_page_token = std::move(*message.mutable_next_page_token());
  return result;
}

absl::StatusOr<codec::OutgoingMessage> ToWire(const StepRequest& request, const TensorRefs* refs) {
  codec::OutgoingMessage message{v1::StepRequest()};
  for (std::size_t i = 0; i < request.steps.size(); ++i) {
    ATTENTION_CLIENT_ASSIGN_OR_RETURN(codec::OutgoingMessage step,
                                      ToWire(request.steps[i], i, refs));
    message.Add(v1::StepRequest::kStepsFieldNumber, std::move(step));
  }
  return message;
}

absl::StatusOr<StepResult> FromWire(const v1::StepResponse& message,
                                    const codec::ReceivedMessage& received,
                                    const TensorRefs* refs) {
  StepResult result;
  result.results.reserve(static_cast<std::size_t>(message.results_size()));
  for (const v1::SessionStepResult& step : message.results()) {
    ATTENTION_CLIENT_ASSIGN_OR_RETURN(SessionStepResult converted, FromWire(step, received, refs));
    result.results.push_back(std::move(converted));
  }
  result.timing = FromProto(message.timing());
  return result;
}

absl::StatusOr<KeysValues> FromWire(const v1::GetKeysValuesResponse& message,
                                    const codec::ReceivedMessage& received) {
  KeysValues rows;
  ATTENTION_CLIENT_ASSIGN_OR_RETURN(rows.k, internal::FromWire(message.k(), received));
  if (!message.has_v()) return rows;
  ATTENTION_CLIENT_ASSIGN_OR_RETURN(rows.v, internal::FromWire(message.v(), received));
  return rows;
}

}  // namespace attention::client::internal
