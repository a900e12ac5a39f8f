// attention.v1.LayerService.
#pragma once

#include "attention/v1/layer_service.grpc.pb.h"
#include "server/rpc/layer_upload.h"
#include "server/rpc/layer_work.h"
#include "server/rpc/service_context.h"
#include "server/rpc/stream_registry.h"
#include "server/rpc/taken_at_headers.h"
#include "server/rpc/unary_call.h"

namespace attention::server {

// Messages are received and sent as bytes (proto/codec).
template <typename Service>
using RawLayerMethods = v1::LayerService::WithRawMethod_CreateLayer<
    v1::LayerService::WithRawMethod_GetLayer<v1::LayerService::WithRawMethod_ListLayers<
        v1::LayerService::WithRawMethod_DeleteLayer<v1::LayerService::WithRawMethod_ConvertLayer<
            v1::LayerService::WithRawMethod_Forward<Service>>>>>>;
using RawLayerService = RawLayerMethods<TakenAtHeaders<v1::LayerService>>;

class LayerServiceImpl final : public RawLayerService {
 public:
  // The references must outlive the service.
  LayerServiceImpl(const ServiceContext& services, StreamRegistry& registry);

  // Takes calls from now on; the server must have started.
  void Listen(grpc::ServerCompletionQueue& queue);

  // Gives up what is computed beside the calls' own threads, and answers it.
  void StopBackground() { work_.Stop(); }

 private:
  void GetLayer(UnaryCall& call);
  void ListLayers(UnaryCall& call);
  void DeleteLayer(UnaryCall& call);
  void ConvertLayer(UnaryCall& call);
  void Forward(UnaryCall& call);
  absl::StatusOr<grpc::ByteBuffer> Convert(UnaryCall& call, const v1::ConvertLayerRequest& request);

  const ServiceContext& services_;
  grpc::ServerCompletionQueue* queue_ = nullptr;
  LayerWork work_;
  const UploadMethod create_layer_;
  const UnaryMethod get_layer_;
  const UnaryMethod list_layers_;
  const UnaryMethod delete_layer_;
  const UnaryMethod convert_layer_;
  const UnaryMethod forward_;
};

}  // namespace attention::server
