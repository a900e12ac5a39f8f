#include <utility>

#include "client/internal/base/status_macros.h"
#include "client/internal/convert/convert.h"

namespace attention::client::internal {

absl::StatusOr<ServerInfo> FromProto(v1::GetServerInfoResponse&& message) {
  ServerInfo info{.version = message.version(),
                  .commit = message.commit(),
                  .server_name = message.server_name(),
                  .server_epoch = message.server_epoch()};
  for (const v1::Device& device : message.devices()) {
    info.devices.push_back({.backend = device.backend(),
                            .name = device.name(),
                            .isa = device.isa(),
                            .num_threads = device.num_threads(),
                            .is_used = device.is_used(),
                            .unused_reason = device.unused_reason()});
  }
  const v1::Limits& limits = message.limits();
  info.limits = {.max_message_bytes = limits.max_message_bytes(),
                 .max_queued_requests = limits.max_queued_requests(),
                 .max_queued_bytes = limits.max_queued_bytes(),
                 .max_sessions = limits.max_sessions(),
                 .max_sessions_per_tenant = limits.max_sessions_per_tenant(),
                 .max_session_ttl_seconds = limits.max_session_ttl_seconds(),
                 .max_head_dim_qk = limits.max_head_dim_qk(),
                 .max_head_dim_v = limits.max_head_dim_v(),
                 .kv_capacity_bytes = limits.kv_capacity_bytes(),
                 .layer_capacity_bytes = limits.layer_capacity_bytes(),
                 .max_layers_per_tenant = limits.max_layers_per_tenant(),
                 .max_receiving_bytes = limits.max_receiving_bytes(),
                 .max_calls = limits.max_calls(),
                 .max_response_bytes = limits.max_response_bytes()};
  info.capacity = {.kv_free_bytes = message.capacity().kv_free_bytes(),
                   .num_sessions = message.capacity().num_sessions(),
                   .queued_requests = message.capacity().queued_requests(),
                   .num_layers = message.capacity().num_layers(),
                   .layer_bytes = message.capacity().layer_bytes()};
  info.shared_memory_socket = message.shared_memory_socket();
  return info;
}

absl::StatusOr<codec::OutgoingMessage> ToWire(const ExplainRequest& request) {
  v1::ExplainRequest small_fields;
  small_fields.set_num_q_heads(request.num_q_heads);
  small_fields.set_num_kv_heads(request.num_kv_heads);
  small_fields.set_head_dim_qk(request.head_dim_qk);
  small_fields.set_head_dim_v(request.head_dim_v);
  small_fields.set_value_is_key_prefix(request.value_is_key_prefix);
  small_fields.set_dtype(ToProto(request.dtype));
  if (request.kv_dtype.has_value()) small_fields.set_kv_dtype(ToProto(*request.kv_dtype));
  small_fields.set_q_len(request.q_len);
  small_fields.set_kv_len(request.kv_len);
  if (request.first_query_position.has_value()) {
    small_fields.set_first_query_position(*request.first_query_position);
  }
  codec::OutgoingMessage message(small_fields);
  ATTENTION_CLIENT_ASSIGN_OR_RETURN(codec::OutgoingMessage config, ToWire(request.config));
  message.Add(v1::ExplainRequest::kConfigFieldNumber, std::move(config));
  return message;
}

absl::StatusOr<ExplainResult> FromProto(v1::ExplainResponse&& message) {
  return ExplainResult{.is_supported = message.is_supported(),
                       .unsupported_reason = message.unsupported_reason(),
                       .backend = message.backend(),
                       .kernel = message.kernel(),
                       .flops = message.flops(),
                       .kv_bytes = message.kv_bytes(),
                       .io_bytes = message.io_bytes(),
                       .roofline_seconds = message.roofline_seconds()};
}

}  // namespace attention::client::internal
