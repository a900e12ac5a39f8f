#include "tests/support/layer_driver.h"

#include <algorithm>

namespace attention::testing {

std::unique_ptr<v1::LayerService::Stub> LayerStub(ServerClient& server) {
  return v1::LayerService::NewStub(server.channel());
}

std::vector<v1::CreateLayerRequest> UploadOf(const LayerCase& layer, const std::string& layer_id,
                                             std::size_t chunk_bytes) {
  std::vector<v1::CreateLayerRequest> messages(1);
  messages[0].mutable_layer()->set_layer_id(layer_id);
  *messages[0].mutable_layer()->mutable_config() = layer.config;
  for (const auto& [name, tensor] : layer.tensors) {
    v1::LayerTensor* begun = messages.emplace_back().mutable_tensor();
    begun->set_name(name);
    *begun->mutable_tensor() = tensor;
    begun->mutable_tensor()->set_data(tensor.data().substr(0, chunk_bytes));
    for (std::size_t at = chunk_bytes; at < tensor.data().size(); at += chunk_bytes) {
      messages.emplace_back().set_chunk(tensor.data().substr(at, chunk_bytes));
    }
  }
  return messages;
}

grpc::Status Upload(ServerClient& server, const std::vector<v1::CreateLayerRequest>& messages,
                    v1::Layer* layer, const std::string& tenant) {
  const auto stub = LayerStub(server);
  const auto context = NewContext(tenant);
  v1::CreateLayerResponse response;
  const auto writer = stub->CreateLayer(context.get(), &response);
  for (const v1::CreateLayerRequest& message : messages) {
    if (!writer->Write(message)) break;
  }
  writer->WritesDone();
  const grpc::Status status = writer->Finish();
  if (layer != nullptr) *layer = response.layer();
  return status;
}

std::string MustCreateLayer(ServerClient& server, const LayerCase& layer,
                            const std::string& layer_id) {
  v1::Layer created;
  const grpc::Status status = Upload(server, UploadOf(layer, layer_id), &created);
  EXPECT_TRUE(status.ok()) << status.error_message();
  return created.layer_id();
}

grpc::Status Forward(ServerClient& server, const v1::ForwardRequest& request,
                     v1::ForwardResponse* response, const std::string& tenant) {
  const auto context = NewContext(tenant);
  return LayerStub(server)->Forward(context.get(), request, response);
}

v1::ForwardResponse MustForward(ServerClient& server, const v1::ForwardRequest& request) {
  v1::ForwardResponse response;
  const grpc::Status status = Forward(server, request, &response);
  EXPECT_TRUE(status.ok()) << status.error_message();
  return response;
}

v1::SessionHandle MustCreateSessionFor(ServerClient& server, const v1::LayerConfig& config) {
  v1::CreateSessionRequest request;
  v1::SessionGeometry* geometry = request.mutable_geometry();
  geometry->set_num_layers(2);
  geometry->set_num_kv_heads(config.num_kv_heads());
  geometry->set_head_dim_qk(config.head_dim_qk());
  geometry->set_head_dim_v(config.head_dim_v());
  geometry->set_kv_dtype(v1::DTYPE_FLOAT32);
  v1::CreateSessionResponse response;
  const auto context = NewContext();
  const grpc::Status status = server.sessions().CreateSession(context.get(), request, &response);
  EXPECT_TRUE(status.ok()) << status.error_message();
  return response.session().handle();
}

}  // namespace attention::testing
