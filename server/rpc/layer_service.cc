#include "server/rpc/layer_service.h"

#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/base/contain_exceptions.h"
#include "server/base/status_macros.h"
#include "server/rpc/forward_call.h"
#include "server/wire/layer_decoder.h"

namespace attention::server {
namespace {

constexpr int kDefaultListPageSize = 100;
constexpr int kMaxListPageSize = 1000;

struct ForwardExchange {
  ForwardExchange(const ServiceContext& services, const CallFrame& frame)
      : call(services, frame, received) {}

  codec::ReceivedMessage received;
  v1::ForwardRequest wire;
  ForwardCall call;
};

}  // namespace

#define ATTENTION_UNARY_METHOD(NAME)                                              \
  UnaryMethod {                                                                   \
    services_, "LayerService/" #NAME,                                             \
        [this, index = IndexOf(#NAME)](auto* context, auto* channel, void* tag) { \
          RequestAtHeaders(index, context, channel, queue_, tag);                 \
        },                                                                        \
        [this](UnaryCall& call) { NAME(call); }                                   \
  }

LayerServiceImpl::LayerServiceImpl(const ServiceContext& services, StreamRegistry& registry)
    : services_(services),
      work_({services.limits.max_pending_layers, services.limits.max_pending_layers_per_tenant}),
      create_layer_{services, "LayerService/CreateLayer", registry, work_,
                    [this](auto* context, auto* channel, void* tag) {
                      RequestCreateLayer(context, channel, queue_, queue_, tag);
                    }},
      get_layer_(ATTENTION_UNARY_METHOD(GetLayer)),
      list_layers_(ATTENTION_UNARY_METHOD(ListLayers)),
      delete_layer_(ATTENTION_UNARY_METHOD(DeleteLayer)),
      convert_layer_(ATTENTION_UNARY_METHOD(ConvertLayer)),
      forward_(ATTENTION_UNARY_METHOD(Forward)) {}

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
        ATTENTION_ASSIGN_OR_RETURN(const std::shared_ptr<const Layer> layer,
                                   services_.layers.Find(frame.tenant(), request.layer_id()));
        EncodeLayer(*layer, response->mutable_layer());
        return absl::OkStatus();
      });
}

void LayerServiceImpl::ListLayers(UnaryCall& call) {
  AnswerNow<v1::ListLayersRequest, v1::ListLayersResponse>(
      call, [&](const CallFrame& frame, const auto& request, auto* response) {
        const int page_size = request.page_size() == 0 ? kDefaultListPageSize : request.page_size();
        if (page_size < 0 || page_size > kMaxListPageSize) {
          return absl::InvalidArgumentError(
              absl::StrCat("page_size is ", page_size, ", expected 0 to ", kMaxListPageSize));
        }
        const auto limit = static_cast<std::size_t>(page_size);
        const auto layers = services_.layers.List(frame.tenant(), request.page_token(), limit + 1);
        for (std::size_t i = 0; i < layers.size() && i < limit; ++i) {
          EncodeLayer(*layers[i], response->add_layers());
        }
        if (layers.size() > limit) response->set_next_page_token(layers[limit - 1]->layer_id);
        return absl::OkStatus();
      });
}

void LayerServiceImpl::DeleteLayer(UnaryCall& call) {
  AnswerNow<v1::DeleteLayerRequest, v1::DeleteLayerResponse>(
      call, [&](const CallFrame& frame, const auto& request, auto*) {
        services_.layers.Delete(frame.tenant(), request.layer_id());
        return absl::OkStatus();
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
  auto exchange = std::make_shared<ForwardExchange>(services_, call.frame());
  std::unique_ptr<AttentionRequest> request = call.frame().MakeRequest();
  absl::Status status = exchange->received.Parse(call.request(), &exchange->wire);
  if (status.ok()) status = call.frame().CheckRoom(call.request().Length());
  if (status.ok()) status = exchange->call.Begin(call.frame(), exchange->wire, request.get());
  exchange->received.Release();
  call.ReleaseRequest();
  request->completion = [&call, exchange](std::unique_ptr<AttentionRequest>,
                                          AttentionResult result) {
    call.FinishWith([&]() -> absl::StatusOr<grpc::ByteBuffer> {
      ATTENTION_RETURN_IF_ERROR(result.status);
      ATTENTION_ASSIGN_OR_RETURN(codec::OutgoingMessage response, exchange->call.Complete(result));
      return std::move(response).Serialize();
    });
  };
  if (status.ok()) {
    status = services_.scheduler.Submit(request, Scheduler::Start::kWithPending);
  }
  if (!status.ok()) call.Finish(status);
}

}  // namespace attention::server
