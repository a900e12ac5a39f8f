#include "server/rpc/layer_service.h"

#include <memory>
#include <utility>

#include "server/base/contain_exceptions.h"
#include "server/base/status_macros.h"
#include "server/rpc/forward_call.h"
#include "server/rpc/list_page.h"
#include "server/rpc/tensor_exchange.h"
#include "server/wire/layer_decoder.h"

namespace attention::server {

LayerServiceImpl::LayerServiceImpl(const ServiceContext& services, StreamRegistry& registry)
    : services_(services),
      work_({services.limits.max_pending_layers, services.limits.max_pending_layers_per_tenant}),
      create_layer_{services, "LayerService/CreateLayer", registry, work_,
                    [this](auto* context, auto* channel, void* tag) {
                      RequestCreateLayer(context, channel, queue_, queue_, tag);
                    }},
      get_layer_(ATTENTION_UNARY_METHOD(LayerService, GetLayer)),
      list_layers_(ATTENTION_UNARY_METHOD(LayerService, ListLayers)),
      delete_layer_(ATTENTION_UNARY_METHOD(LayerService, DeleteLayer)),
      convert_layer_(ATTENTION_UNARY_METHOD(LayerService, ConvertLayer)),
      forward_(ATTENTION_UNARY_METHOD(LayerService, Forward)) {}

void LayerServiceImpl::Listen(grpc::ServerCompletionQueue& queue) {
  queue_ = &queue;
  LayerUpload::Listen(create_layer_);
  for (const UnaryMethod* method :
       {&get_layer_, &list_layers_, &delete_layer_, &convert_layer_, &forward_}) {
    UnaryCall::Listen(*method);
  }
}

void LayerServiceImpl::GetLayer(UnaryCall& call) {
  AnswerNow<v1::GetLayerRequest, v1::GetLayerResponse>(
      call, [&](const CallFrame& frame, const auto& request, auto* response) {
        ATTENTION_ASSIGN_OR_RETURN(const std::string tenant, frame.TenantNamed(request.tenant()));
        ATTENTION_ASSIGN_OR_RETURN(const std::shared_ptr<const Layer> layer,
                                   services_.layers.Find(tenant, request.layer_id()));
        EncodeLayer(*layer, response->mutable_layer());
        return absl::OkStatus();
      });
}

void LayerServiceImpl::ListLayers(UnaryCall& call) {
  AnswerNow<v1::ListLayersRequest, v1::ListLayersResponse>(
      call, [&](const CallFrame& frame, const auto& request, auto* response) {
        ATTENTION_ASSIGN_OR_RETURN(const std::string tenant, frame.TenantNamed(request.tenant()));
        const auto list = [&](const std::string& after, std::size_t count) {
          return services_.layers.List(tenant, after, count);
        };
        const auto add = [&](const Layer& layer) {
          EncodeLayer(layer, response->add_layers());
          return layer.layer_id;
        };
        return FillPage(request, list, add, response);
      });
}

void LayerServiceImpl::DeleteLayer(UnaryCall& call) {
  AnswerNow<v1::DeleteLayerRequest, v1::DeleteLayerResponse>(
      call, [&](const CallFrame& frame, const auto& request, auto*) {
        ATTENTION_ASSIGN_OR_RETURN(const std::string tenant, frame.TenantNamed(request.tenant()));
        return services_.layers.Delete(tenant, request.layer_id());
      });
}

void LayerServiceImpl::ConvertLayer(UnaryCall& call) {
  v1::ConvertLayerRequest request;
  absl::Status status = ParseSmall(call.request(), &request);
  if (status.ok()) status = services_.scheduler.CheckAccepting();
  if (!status.ok()) return call.Finish(status);
  absl::StatusOr<LayerWork::Slot> slot = work_.TakeSlot(call.frame().tenant());
  if (!slot.ok()) return call.Finish(slot.status());
  work_.Post([this, &call, request = std::move(request), slot = *std::move(slot)]() mutable {
    call.FinishWith([&] {
      auto response = ContainExceptions([&] { return Convert(call, request); });
      slot = {};  // before the client can know of the end
      return response;
    });
  });
}

absl::StatusOr<grpc::ByteBuffer> LayerServiceImpl::Convert(UnaryCall& call,
                                                           const v1::ConvertLayerRequest& request) {
  const auto check = [&] {
    if (!call.is_cancelled().load(std::memory_order_relaxed)) return work_.CheckGoing();
    return absl::CancelledError("the client has gone");
  };
  ATTENTION_ASSIGN_OR_RETURN(
      const std::shared_ptr<const Layer> layer,
      services_.layers.Convert(call.frame().tenant(), request.source_layer_id(), request.layer_id(),
                               request.num_kv_heads(), check));
  v1::ConvertLayerResponse response;
  EncodeLayer(*layer, response.mutable_layer());
  return codec::OutgoingMessage(response).Serialize();
}

void LayerServiceImpl::Forward(UnaryCall& call) {
  ServeTensorCall<v1::ForwardRequest, ForwardCall>(call, services_);
}

}  // namespace attention::server
