#include "server/rpc/server_service.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kernels/api/validate.h"
#include "kernels/api/work_estimate.h"
#include "server/base/client_text.h"
#include "server/base/status_macros.h"
#include "server/base/version.h"
#include "server/rpc/unary_call.h"
#include "server/wire/config_decoder.h"
#include "server/wire/tenant_limits_decoder.h"
#include "server/wire/tensor_decoder.h"

namespace attention::server {
namespace {

void EncodeDevice(const DeviceStatus& device, v1::Device* wire) {
  wire->set_backend(device.info.name);
  wire->set_name(device.info.device);
  wire->set_isa(device.info.isa);
  wire->set_num_threads(device.info.num_threads);
  wire->set_is_used(device.is_used);
  wire->set_unused_reason(device.unused_reason);
  wire->set_kv_capacity_bytes(device.kv_capacity_bytes);
  wire->set_kv_free_bytes(device.kv_free_bytes);
}

void EncodeLimits(const ServiceLimits& limits, const TenantLimits& tenant,
                  std::int64_t kv_capacity_bytes, const LayerTable& layers, v1::Limits* wire) {
  wire->set_max_message_bytes(limits.max_message_bytes);
  wire->set_max_queued_requests(limits.max_queued_requests);
  wire->set_max_queued_bytes(limits.max_queued_bytes);
  wire->set_max_sessions(limits.max_sessions);
  wire->set_max_sessions_per_tenant(std::min(limits.max_sessions, tenant.sessions));
  wire->set_max_session_ttl_seconds(absl::ToInt64Seconds(limits.max_session_ttl));
  wire->set_max_head_dim_qk(kMaxHeadDimQk);
  wire->set_max_head_dim_v(kMaxHeadDimV);
  wire->set_kv_capacity_bytes(kv_capacity_bytes);
  wire->set_layer_capacity_bytes(layers.limits().capacity_bytes);
  wire->set_max_layers_per_tenant(layers.limits().max_layers_per_tenant);
  wire->set_max_receiving_bytes(limits.max_receiving_bytes);
  wire->set_max_calls(limits.max_calls);
  wire->set_max_response_bytes(limits.max_response_bytes);
}

absl::Status CheckRange(absl::string_view field, std::int64_t value, std::int64_t min) {
  if (value >= min && value <= kMaxPosition) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(field, " is ", value, ", expected ", min, " to ", kMaxPosition));
}

// A task without data: what Supports, KernelName and EstimateWork look at.
absl::StatusOr<AttentionTask> DecodeTask(const v1::ExplainRequest& wire, RequestTensors& tensors) {
  AttentionTask task;
  AttentionParams& params = task.params;
  params.num_q_heads = wire.num_q_heads();
  params.num_kv_heads = wire.num_kv_heads();
  params.head_dim_qk = wire.head_dim_qk();
  params.head_dim_v = wire.head_dim_v();
  params.value_is_key_prefix = wire.value_is_key_prefix();
  ATTENTION_ASSIGN_OR_RETURN(params.dtype, DecodeDType("dtype", wire.dtype()));
  params.kv_dtype = params.dtype;
  if (wire.kv_dtype() != v1::DTYPE_UNSPECIFIED) {
    ATTENTION_ASSIGN_OR_RETURN(params.kv_dtype, DecodeKvDType("kv_dtype", wire.kv_dtype()));
  }
  ATTENTION_RETURN_IF_ERROR(ValidateHeads(params));
  ATTENTION_RETURN_IF_ERROR(DecodeConfig("config", wire.config(), &params));
  ATTENTION_RETURN_IF_ERROR(DecodeHeadVectors("config", wire.config(), tensors, &task));
  ATTENTION_RETURN_IF_ERROR(CheckRange("q_len", wire.q_len(), 0));
  ATTENTION_RETURN_IF_ERROR(CheckRange("kv_len", wire.kv_len(), 0));
  task.q_len = wire.q_len();
  task.kv_len = wire.kv_len();
  task.first_query_position = task.kv_len - task.q_len;
  if (wire.has_first_query_position()) {
    task.first_query_position = wire.first_query_position();
    ATTENTION_RETURN_IF_ERROR(
        CheckRange("first_query_position", task.first_query_position, -kMaxPosition));
  }
  return task;
}

void EncodeExplanation(const ServiceContext& services, const AttentionTask& task,
                       v1::ExplainResponse* wire) {
  wire->set_backend(services.backend.info().name);
  const WorkEstimate work = EstimateWork(task);
  wire->set_flops(work.flops);
  wire->set_kv_bytes(work.kv_bytes);
  wire->set_io_bytes(work.io_bytes);
  const absl::Status supported = services.backend.Supports(task.params, task.kv_len);
  wire->set_is_supported(supported.ok());
  if (!supported.ok()) {
    wire->set_unsupported_reason(std::string(supported.message()));
    return;
  }
  wire->set_kernel(services.backend.KernelName(task));
  wire->set_roofline_seconds(services.work_model.Roofline(work));
}

}  // namespace

ServerServiceImpl::ServerServiceImpl(const ServiceContext& services)
    : services_(services),
      get_server_info_(ATTENTION_UNARY_METHOD(ServerService, GetServerInfo)),
      explain_(ATTENTION_UNARY_METHOD(ServerService, Explain)),
      get_tenant_limits_(ATTENTION_UNARY_METHOD(ServerService, GetTenantLimits)),
      set_tenant_limits_(ATTENTION_UNARY_METHOD(ServerService, SetTenantLimits)),
      drain_(ATTENTION_UNARY_METHOD(ServerService, Drain)) {}

void ServerServiceImpl::Listen(grpc::ServerCompletionQueue& queue) {
  queue_ = &queue;
  for (const UnaryMethod* method :
       {&get_server_info_, &explain_, &get_tenant_limits_, &set_tenant_limits_, &drain_}) {
    UnaryCall::Listen(*method);
  }
}

void ServerServiceImpl::GetServerInfo(UnaryCall& call) {
  AnswerNow<v1::GetServerInfoRequest, v1::GetServerInfoResponse>(
      call, [&](const CallFrame& frame, const auto& request, auto* response) {
        ATTENTION_ASSIGN_OR_RETURN(const std::string tenant, frame.TenantNamed(request.tenant()));
        response->set_version(kVersion);
        response->set_commit(kCommit);
        response->set_server_name(services_.sessions.server_name());
        response->set_server_epoch(services_.sessions.server_epoch());
        for (const DeviceStatus& device : services_.devices()) {
          EncodeDevice(device, response->add_devices());
        }
        const KvCacheFactory& caches = services_.sessions.caches();
        EncodeLimits(services_.limits, services_.tenant_limits.Of(tenant), caches.capacity_bytes(),
                     services_.layers, response->mutable_limits());
        response->set_shared_memory_socket(services_.shared_memory_socket);
        v1::Capacity* capacity = response->mutable_capacity();
        capacity->set_kv_free_bytes(caches.free_bytes());
        response->set_tenant(tenant);
        capacity->set_num_sessions(services_.sessions.num_sessions(tenant));
        capacity->set_queued_requests(services_.scheduler.NumWaiting(tenant));
        capacity->set_num_layers(services_.layers.num_layers(tenant));
        capacity->set_layer_bytes(services_.layers.weight_bytes(tenant));
        return absl::OkStatus();
      });
}

void ServerServiceImpl::Explain(UnaryCall& call) {
  AnswerNow<v1::ExplainRequest, v1::ExplainResponse>(
      call, [&](const CallFrame&, const auto& request, auto* response) {
        const codec::ReceivedMessage none;  // the tensors are in the message
        RequestTensors tensors(none, services_.buffers);
        const absl::StatusOr<AttentionTask> task = DecodeTask(request, tensors);
        if (task.ok()) EncodeExplanation(services_, *task, response);
        return task.status();
      });
}

void ServerServiceImpl::GetTenantLimits(UnaryCall& call) {
  AnswerNow<v1::GetTenantLimitsRequest, v1::GetTenantLimitsResponse>(
      call, [&](const CallFrame& frame, const auto& request, auto* response) -> absl::Status {
        ATTENTION_ASSIGN_OR_RETURN(const std::string tenant, frame.TenantNamed(request.tenant()));
        const auto all = services_.tenant_limits.all();
        response->set_tenant(tenant);
        response->set_is_listed(all->listed.count(tenant) > 0);
        EncodeTenantLimits(all->Of(tenant), response->mutable_limits());
        v1::TenantUse* use = response->mutable_use();
        use->set_kv_bytes(services_.sessions.caches().used_bytes(tenant));
        use->set_layer_bytes(services_.layers.weight_bytes(tenant));
        use->set_sessions(services_.sessions.num_sessions(tenant));
        use->set_streams(services_.streams.HeldBy(tenant));
        return absl::OkStatus();
      });
}

void ServerServiceImpl::SetTenantLimits(UnaryCall& call) {
  AnswerNow<v1::SetTenantLimitsRequest, v1::SetTenantLimitsResponse>(
      call, [&](const CallFrame& frame, const auto& request, auto* response) -> absl::Status {
        ATTENTION_RETURN_IF_ERROR(frame.CheckIsAdmin());
        const std::string& tenant = request.tenant();
        ATTENTION_RETURN_IF_ERROR(frame.TenantNamed(tenant).status());
        ATTENTION_ASSIGN_OR_RETURN(
            const TenantLimits limits,
            DecodeTenantLimits(request.limits(), services_.tenant_limits.Of(tenant)));
        services_.tenant_limits.Set(tenant, limits);
        services_.warn(
            absl::StrCat("tenant ", Quoted(frame.tenant()), " set the limits of ",
                         tenant.empty() ? "tenants that are not listed" : Quoted(tenant)));
        EncodeTenantLimits(limits, response->mutable_limits());
        return absl::OkStatus();
      });
}

void ServerServiceImpl::Drain(UnaryCall& call) {
  AnswerNow<v1::DrainRequest, v1::DrainResponse>(
      call, [&](const CallFrame& frame, const auto&, auto*) -> absl::Status {
        ATTENTION_RETURN_IF_ERROR(frame.CheckIsAdmin());
        services_.warn(absl::StrCat("tenant ", Quoted(frame.tenant()), " asked for a drain"));
        services_.ask_for_drain();
        return absl::OkStatus();
      });
}

}  // namespace attention::server
