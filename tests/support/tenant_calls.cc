#include "tests/support/tenant_calls.h"

#include <algorithm>

#include "tests/support/layer_driver.h"

namespace attention::testing {
namespace {

const LayerCase& TheLayer() {
  static const auto* layer = new LayerCase(MakeLayer(SmallLayerConfig(), 1));
  return *layer;
}

}  // namespace

grpc::Status Attend(const Caller& caller, v1::AttendRequest request) {
  v1::AttendResponse response;
  const grpc::Status status = v1::AttentionService::NewStub(caller.channel)
                                  ->Attend(caller.Context().get(), request, &response);
  if (status.ok() && !request.has_output_to()) {
    EXPECT_EQ(FindMismatch(request, response), "");
  }
  return status;
}

grpc::Status AttendOnAStream(const Caller& caller) {
  const auto context = caller.Context();
  const auto stream = v1::AttentionService::NewStub(caller.channel)->AttendStream(context.get());
  v1::AttendStreamRequest request;
  *request.mutable_request() = MakeAttendRequest({});
  stream->Write(request);
  stream->WritesDone();
  v1::AttendStreamResponse response;
  const bool is_answered = stream->Read(&response);
  grpc::Status status = stream->Finish();
  EXPECT_EQ(status.ok(), is_answered);
  return status;
}

grpc::Status Create(const Caller& caller, v1::SessionHandle* handle) {
  v1::CreateSessionResponse response;
  const grpc::Status status =
      v1::SessionService::NewStub(caller.channel)
          ->CreateSession(caller.Context().get(), MakeCreateRequest({}), &response);
  *handle = response.session().handle();
  return status;
}

grpc::Status Get(const Caller& caller, const v1::SessionHandle& handle, const std::string& tenant) {
  v1::GetSessionRequest request;
  request.set_tenant(tenant);
  *request.mutable_handle() = handle;
  v1::GetSessionResponse response;
  return v1::SessionService::NewStub(caller.channel)
      ->GetSession(caller.Context().get(), request, &response);
}

grpc::Status Delete(const Caller& caller, const v1::SessionHandle& handle,
                    const std::string& tenant) {
  v1::DeleteSessionRequest request;
  request.set_tenant(tenant);
  *request.mutable_handle() = handle;
  v1::DeleteSessionResponse response;
  return v1::SessionService::NewStub(caller.channel)
      ->DeleteSession(caller.Context().get(), request, &response);
}

grpc::Status Step(const Caller& caller, const v1::SessionHandle& handle) {
  v1::StepRequest request;
  *request.add_steps() = MakeStep(MakePrompt(3), handle, 0, 3);
  v1::StepResponse response;
  const grpc::Status status =
      v1::SessionService::NewStub(caller.channel)->Step(caller.Context().get(), request, &response);
  if (!status.ok() || !response.results(0).has_error()) return status;
  return {static_cast<grpc::StatusCode>(response.results(0).error().code()),
          response.results(0).error().message()};
}

grpc::Status StepOnAStream(const Caller& caller, const v1::SessionHandle& handle) {
  const auto context = caller.Context();
  const auto stream = v1::SessionService::NewStub(caller.channel)->StepStream(context.get());
  v1::StepStreamRequest request;
  *request.mutable_request()->add_steps() = MakeStep(MakePrompt(3), handle, 0, 3);
  stream->Write(request);
  stream->WritesDone();
  v1::StepStreamResponse response;
  const bool is_answered = stream->Read(&response);
  grpc::Status status = stream->Finish();
  if (!status.ok() || !is_answered || !response.response().results(0).has_error()) return status;
  return {static_cast<grpc::StatusCode>(response.response().results(0).error().code()),
          response.response().results(0).error().message()};
}

grpc::Status List(const Caller& caller, std::vector<std::string>* ids, const std::string& tenant) {
  v1::ListSessionsRequest request;
  request.set_tenant(tenant);
  v1::ListSessionsResponse response;
  grpc::Status status = v1::SessionService::NewStub(caller.channel)
                            ->ListSessions(caller.Context().get(), request, &response);
  for (const auto& session : response.sessions()) ids->push_back(session.handle().session_id());
  return status;
}

grpc::Status CreateLayer(const Caller& caller, const std::string& layer_id) {
  const auto context = caller.Context();
  v1::CreateLayerResponse response;
  const auto writer =
      v1::LayerService::NewStub(caller.channel)->CreateLayer(context.get(), &response);
  for (const auto& message : UploadOf(TheLayer(), layer_id)) {
    if (!writer->Write(message)) break;
  }
  writer->WritesDone();
  return writer->Finish();
}

grpc::Status GetLayer(const Caller& caller, const std::string& layer_id,
                      const std::string& tenant) {
  v1::GetLayerRequest request;
  request.set_tenant(tenant);
  request.set_layer_id(layer_id);
  v1::GetLayerResponse response;
  return v1::LayerService::NewStub(caller.channel)
      ->GetLayer(caller.Context().get(), request, &response);
}

grpc::Status DeleteLayer(const Caller& caller, const std::string& layer_id,
                         const std::string& tenant) {
  v1::DeleteLayerRequest request;
  request.set_tenant(tenant);
  request.set_layer_id(layer_id);
  v1::DeleteLayerResponse response;
  return v1::LayerService::NewStub(caller.channel)
      ->DeleteLayer(caller.Context().get(), request, &response);
}

grpc::Status ConvertLayer(const Caller& caller, const std::string& layer_id) {
  v1::ConvertLayerRequest request;
  request.set_source_layer_id(layer_id);
  request.set_layer_id("stolen");
  request.set_num_kv_heads(1);
  v1::ConvertLayerResponse response;
  return v1::LayerService::NewStub(caller.channel)
      ->ConvertLayer(caller.Context().get(), request, &response);
}

grpc::Status ForwardRows(const Caller& caller, const std::string& layer_id) {
  v1::ForwardRequest request;
  request.set_layer_id(layer_id);
  *request.mutable_x() = RandomTensor(v1::DTYPE_FLOAT32, {7, 48}, 2);
  v1::ForwardResponse response;
  grpc::Status status = v1::LayerService::NewStub(caller.channel)
                            ->Forward(caller.Context().get(), request, &response);
  if (status.ok()) {
    EXPECT_EQ(FindMismatch(ExpectForward(TheLayer(), {.x = request.x()}), response.output()), "");
  }
  return status;
}

grpc::Status ListLayers(const Caller& caller, std::vector<std::string>* ids,
                        const std::string& tenant) {
  v1::ListLayersRequest request;
  request.set_tenant(tenant);
  v1::ListLayersResponse response;
  grpc::Status status = v1::LayerService::NewStub(caller.channel)
                            ->ListLayers(caller.Context().get(), request, &response);
  for (const auto& layer : response.layers()) ids->push_back(layer.layer_id());
  return status;
}

grpc::Status Info(const Caller& caller, v1::GetServerInfoResponse* response,
                  const std::string& tenant) {
  v1::GetServerInfoRequest request;
  request.set_tenant(tenant);
  v1::GetServerInfoResponse unused;
  return v1::ServerService::NewStub(caller.channel)
      ->GetServerInfo(caller.Context().get(), request, response == nullptr ? &unused : response);
}

grpc::Status AttendInto(const Caller& caller, const std::string& region_id) {
  v1::AttendRequest request = MakeAttendRequest({});
  request.mutable_output_to()->set_region_id(region_id);
  return Attend(caller, request);
}

v1::SharedMemoryResponse CreateRegion(ChannelConnection& connection, const std::string& tenant,
                                      const std::string& token) {
  v1::SharedMemoryRequest request;
  request.mutable_create()->set_size_bytes(kRegionBytes);
  request.mutable_create()->set_tenant(tenant);
  request.mutable_create()->set_token(token);
  return connection.Call(request.SerializeAsString());
}

Acme::Acme(IdentityServer& server)
    : caller_(server.Plain(server.acme.token)), connection_(server.channel_path()) {
  EXPECT_TRUE(Create(caller_, &handle).ok());
  EXPECT_TRUE(Step(caller_, handle).ok());
  EXPECT_TRUE(CreateLayer(caller_, layer_id).ok());
  const auto response = CreateRegion(connection_, "", server.acme.token);
  EXPECT_TRUE(response.has_create()) << response.ShortDebugString();
  region_id = response.create().region_id();
  memory_ = std::make_unique<SharedMemory>(connection_.TakeFd(), kRegionBytes, region_id);
}

void Acme::ExpectUntouched() const {
  EXPECT_TRUE(Get(caller_, handle).ok());
  EXPECT_TRUE(GetLayer(caller_, layer_id).ok());
  EXPECT_TRUE(std::all_of(memory_->data(), memory_->data() + kRegionBytes,
                          [](char byte) { return byte == 0; }));
}

std::vector<std::pair<const char*, std::function<grpc::Status(const Caller&)>>> Deeds(
    const Acme& acme) {
  return {
      {"attend", [](const Caller& caller) { return Attend(caller); }},
      {"attend on a stream", AttendOnAStream},
      {"create a session",
       [](const Caller& caller) {
         v1::SessionHandle handle;
         return Create(caller, &handle);
       }},
      {"list",
       [](const Caller& caller) {
         std::vector<std::string> ids;
         return List(caller, &ids);
       }},
      {"get", [&](const Caller& caller) { return Get(caller, acme.handle); }},
      {"step", [&](const Caller& caller) { return Step(caller, acme.handle); }},
      {"step on a stream",
       [&](const Caller& caller) { return StepOnAStream(caller, acme.handle); }},
      {"delete", [&](const Caller& caller) { return Delete(caller, acme.handle); }},
      {"create a layer", [](const Caller& caller) { return CreateLayer(caller, "mine"); }},
      {"get a layer", [&](const Caller& caller) { return GetLayer(caller, acme.layer_id); }},
      {"go through a layer",
       [&](const Caller& caller) { return ForwardRows(caller, acme.layer_id); }},
      {"delete a layer", [&](const Caller& caller) { return DeleteLayer(caller, acme.layer_id); }},
      {"convert a layer",
       [&](const Caller& caller) { return ConvertLayer(caller, acme.layer_id); }},
      {"write into memory",
       [&](const Caller& caller) { return AttendInto(caller, acme.region_id); }},
      {"ask for the load", [](const Caller& caller) { return Info(caller); }},
  };
}

}  // namespace attention::testing
