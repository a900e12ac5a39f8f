// Layers of a running server.
#pragma once

#include <string>
#include <vector>

#include "attention/v1/layer_service.grpc.pb.h"
#include "tests/support/layer_case.h"
#include "tests/support/service_fixture.h"

namespace attention::testing {

std::unique_ptr<v1::LayerService::Stub> LayerStub(ServerClient& server);

// The messages of an upload, tensors cut into chunks of so many bytes.
std::vector<v1::CreateLayerRequest> UploadOf(const LayerCase& layer, const std::string& layer_id,
                                             std::size_t chunk_bytes = 1000);

// Sends the messages; `layer`, if not null, receives the answer.
grpc::Status Upload(ServerClient& server, const std::vector<v1::CreateLayerRequest>& messages,
                    v1::Layer* layer = nullptr, const std::string& tenant = "");
// The id of the created layer.
std::string MustCreateLayer(ServerClient& server, const LayerCase& layer,
                            const std::string& layer_id = "");

grpc::Status Forward(ServerClient& server, const v1::ForwardRequest& request,
                     v1::ForwardResponse* response, const std::string& tenant = "");
v1::ForwardResponse MustForward(ServerClient& server, const v1::ForwardRequest& request);

// A session that fits the layer.
v1::SessionHandle MustCreateSessionFor(ServerClient& server, const v1::LayerConfig& config);

}  // namespace attention::testing
