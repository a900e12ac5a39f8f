// A gRPC server in this process whose answers are functions the test sets before it calls. What is
// not set answers UNIMPLEMENTED.
#pragma once

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "attention/client/client.h"
#include "attention/v1/attention_service.grpc.pb.h"
#include "attention/v1/errors.pb.h"
#include "attention/v1/layer_service.grpc.pb.h"
#include "attention/v1/server_service.grpc.pb.h"
#include "attention/v1/session_service.grpc.pb.h"

namespace attention::client {

template <typename Request, typename Response>
using Handler = std::function<grpc::Status(grpc::ServerContext*, const Request&, Response*)>;
template <typename Request, typename Response>
using StreamHandler =
    std::function<grpc::Status(grpc::ServerContext*, grpc::ServerReaderWriter<Response, Request>*)>;

class FakeServer {
 public:
  explicit FakeServer(const std::string& address = "127.0.0.1:0",
                      const std::shared_ptr<grpc::ServerCredentials>& credentials =
                          grpc::InsecureServerCredentials()) {
    int port = 0;
    grpc::ServerBuilder builder;
    builder.AddListeningPort(address, credentials, &port);
    builder.SetMaxReceiveMessageSize(-1);
    builder.RegisterService(&attention_);
    builder.RegisterService(&session_);
    builder.RegisterService(&server_);
    builder.RegisterService(&layer_);
    grpc_server_ = builder.BuildAndStart();
    address_ = address.starts_with("unix:") ? address : absl::StrCat("127.0.0.1:", port);
  }
  ~FakeServer() { Stop(); }

  // Breaks what is in flight.
  void Stop() { grpc_server_->Shutdown(std::chrono::system_clock::now()); }

  const std::string& address() const { return address_; }

  std::shared_ptr<Client> Connect(ClientOptions options = {}) const {
    options.targets = {address_};
    auto client = Client::Connect(options);
    return client.ok() ? *client : nullptr;
  }

  Handler<v1::AttendRequest, v1::AttendResponse> on_attend;
  StreamHandler<v1::AttendStreamRequest, v1::AttendStreamResponse> on_attend_stream;
  Handler<v1::CreateSessionRequest, v1::CreateSessionResponse> on_create_session;
  Handler<v1::GetSessionRequest, v1::GetSessionResponse> on_get_session;
  Handler<v1::ListSessionsRequest, v1::ListSessionsResponse> on_list_sessions;
  Handler<v1::DeleteSessionRequest, v1::DeleteSessionResponse> on_delete_session;
  Handler<v1::ForkSessionRequest, v1::ForkSessionResponse> on_fork_session;
  Handler<v1::TruncateSessionRequest, v1::TruncateSessionResponse> on_truncate_session;
  Handler<v1::ReorderSessionsRequest, v1::ReorderSessionsResponse> on_reorder_sessions;
  Handler<v1::AttachSessionRequest, v1::AttachSessionResponse> on_attach_session;
  Handler<v1::KeepTokensRequest, v1::KeepTokensResponse> on_keep_tokens;
  Handler<v1::GetKeysValuesRequest, v1::GetKeysValuesResponse> on_get_keys_values;
  StreamHandler<v1::ExportSessionRequest, v1::ExportSessionResponse> on_export_session;
  StreamHandler<v1::ImportSessionRequest, v1::ImportSessionResponse> on_import_session;
  Handler<v1::StepRequest, v1::StepResponse> on_step;
  StreamHandler<v1::StepStreamRequest, v1::StepStreamResponse> on_step_stream;
  std::function<grpc::Status(grpc::ServerContext*, grpc::ServerReader<v1::CreateLayerRequest>*,
                             v1::CreateLayerResponse*)>
      on_create_layer;
  Handler<v1::GetServerInfoRequest, v1::GetServerInfoResponse> on_get_server_info;
  Handler<v1::ExplainRequest, v1::ExplainResponse> on_explain;

 private:
  template <typename Handler, typename... Arguments>
  static grpc::Status Answer(const Handler& handler, Arguments&&... arguments) {
    if (!handler) return {grpc::StatusCode::UNIMPLEMENTED, "the test set no answer"};
    return handler(std::forward<Arguments>(arguments)...);
  }

  struct Attention final : v1::AttentionService::Service {
    explicit Attention(FakeServer* fake) : fake(fake) {}
    grpc::Status Attend(grpc::ServerContext* context, const v1::AttendRequest* request,
                        v1::AttendResponse* response) override {
      return Answer(fake->on_attend, context, *request, response);
    }
    grpc::Status AttendStream(grpc::ServerContext* context,
                              grpc::ServerReaderWriter<v1::AttendStreamResponse,
                                                       v1::AttendStreamRequest>* stream) override {
      return Answer(fake->on_attend_stream, context, stream);
    }
    FakeServer* fake;
  };

  struct Session final : v1::SessionService::Service {
    explicit Session(FakeServer* fake) : fake(fake) {}
    grpc::Status CreateSession(grpc::ServerContext* context,
                               const v1::CreateSessionRequest* request,
                               v1::CreateSessionResponse* response) override {
      return Answer(fake->on_create_session, context, *request, response);
    }
    grpc::Status GetSession(grpc::ServerContext* context, const v1::GetSessionRequest* request,
                            v1::GetSessionResponse* response) override {
      return Answer(fake->on_get_session, context, *request, response);
    }
    grpc::Status ListSessions(grpc::ServerContext* context, const v1::ListSessionsRequest* request,
                              v1::ListSessionsResponse* response) override {
      return Answer(fake->on_list_sessions, context, *request, response);
    }
    grpc::Status DeleteSession(grpc::ServerContext* context,
                               const v1::DeleteSessionRequest* request,
                               v1::DeleteSessionResponse* response) override {
      return Answer(fake->on_delete_session, context, *request, response);
    }
    grpc::Status ForkSession(grpc::ServerContext* context, const v1::ForkSessionRequest* request,
                             v1::ForkSessionResponse* response) override {
      return Answer(fake->on_fork_session, context, *request, response);
    }
    grpc::Status TruncateSession(grpc::ServerContext* context,
                                 const v1::TruncateSessionRequest* request,
                                 v1::TruncateSessionResponse* response) override {
      return Answer(fake->on_truncate_session, context, *request, response);
    }
    grpc::Status ReorderSessions(grpc::ServerContext* context,
                                 const v1::ReorderSessionsRequest* request,
                                 v1::ReorderSessionsResponse* response) override {
      return Answer(fake->on_reorder_sessions, context, *request, response);
    }
    grpc::Status AttachSession(grpc::ServerContext* context,
                               const v1::AttachSessionRequest* request,
                               v1::AttachSessionResponse* response) override {
      return Answer(fake->on_attach_session, context, *request, response);
    }
    grpc::Status KeepTokens(grpc::ServerContext* context, const v1::KeepTokensRequest* request,
                            v1::KeepTokensResponse* response) override {
      return Answer(fake->on_keep_tokens, context, *request, response);
    }
    grpc::Status GetKeysValues(grpc::ServerContext* context,
                               const v1::GetKeysValuesRequest* request,
                               v1::GetKeysValuesResponse* response) override {
      return Answer(fake->on_get_keys_values, context, *request, response);
    }
    grpc::Status ExportSession(
        grpc::ServerContext* context,
        grpc::ServerReaderWriter<v1::ExportSessionResponse, v1::ExportSessionRequest>* stream)
        override {
      return Answer(fake->on_export_session, context, stream);
    }
    grpc::Status ImportSession(
        grpc::ServerContext* context,
        grpc::ServerReaderWriter<v1::ImportSessionResponse, v1::ImportSessionRequest>* stream)
        override {
      return Answer(fake->on_import_session, context, stream);
    }
    grpc::Status Step(grpc::ServerContext* context, const v1::StepRequest* request,
                      v1::StepResponse* response) override {
      return Answer(fake->on_step, context, *request, response);
    }
    grpc::Status StepStream(
        grpc::ServerContext* context,
        grpc::ServerReaderWriter<v1::StepStreamResponse, v1::StepStreamRequest>* stream) override {
      return Answer(fake->on_step_stream, context, stream);
    }
    FakeServer* fake;
  };

  struct Server final : v1::ServerService::Service {
    explicit Server(FakeServer* fake) : fake(fake) {}
    grpc::Status GetServerInfo(grpc::ServerContext* context,
                               const v1::GetServerInfoRequest* request,
                               v1::GetServerInfoResponse* response) override {
      return Answer(fake->on_get_server_info, context, *request, response);
    }
    grpc::Status Explain(grpc::ServerContext* context, const v1::ExplainRequest* request,
                         v1::ExplainResponse* response) override {
      return Answer(fake->on_explain, context, *request, response);
    }
    FakeServer* fake;
  };

  struct Layer final : v1::LayerService::Service {
    explicit Layer(FakeServer* fake) : fake(fake) {}
    grpc::Status CreateLayer(grpc::ServerContext* context,
                             grpc::ServerReader<v1::CreateLayerRequest>* stream,
                             v1::CreateLayerResponse* response) override {
      return Answer(fake->on_create_layer, context, stream, response);
    }
    FakeServer* fake;
  };

  Attention attention_{this};
  Session session_{this};
  Server server_{this};
  Layer layer_{this};
  std::unique_ptr<grpc::Server> grpc_server_;
  std::string address_;
};

// An error as the server sends it: reason, metadata and, if positive, a retry delay.
inline grpc::Status ServerError(grpc::StatusCode code, const std::string& message,
                                const std::string& reason, const std::string& key = "",
                                const std::string& value = "",
                                absl::Duration retry_delay = absl::ZeroDuration()) {
  v1::StatusDetails details;
  details.set_code(code);
  details.set_message(message);
  v1::ErrorInfo info;
  info.set_reason(reason);
  info.set_domain("attention.v1");
  if (!key.empty()) (*info.mutable_metadata())[key] = value;
  google::protobuf::Any* any = details.add_details();
  any->set_type_url("type.googleapis.com/google.rpc.ErrorInfo");
  any->set_value(info.SerializeAsString());
  if (retry_delay > absl::ZeroDuration()) {
    v1::RetryInfo retry;
    retry.mutable_retry_delay()->set_seconds(absl::ToInt64Seconds(retry_delay));
    retry.mutable_retry_delay()->set_nanos(static_cast<int>(
        absl::ToInt64Nanoseconds(retry_delay - absl::Trunc(retry_delay, absl::Seconds(1)))));
    any = details.add_details();
    any->set_type_url("type.googleapis.com/google.rpc.RetryInfo");
    any->set_value(retry.SerializeAsString());
  }
  return {code, message, details.SerializeAsString()};
}

// Metadata of a call as the server sees it; empty if there is none of this key.
inline std::string MetadataValue(const grpc::ServerContext& context, const std::string& key) {
  const auto found = context.client_metadata().find(key);
  if (found == context.client_metadata().end()) return "";
  return {found->second.data(), found->second.size()};
}

}  // namespace attention::client
