// Messages that count for a resource quota of gRPC's, on a thread that is not gRPC's.
#include <gmock/gmock.h>
#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/resource_quota.h>

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "attention/v1/attention_service.pb.h"
#include "proto/codec/received_message.h"

namespace attention::codec {
namespace {

constexpr int kClients = 4;
constexpr int kCallsOfAClient = 10;
constexpr std::size_t kMessageBytes = std::size_t{3} << 20;
constexpr std::size_t kQuotaBytes = std::size_t{8} << 20;

// Sends a message and waits for its end, whatever that is: who exceeds a quota is cut off.
void Call(int port, const grpc::ByteBuffer& message) {
  grpc::GenericStub stub(
      grpc::CreateChannel(absl::StrCat("127.0.0.1:", port), grpc::InsecureChannelCredentials()));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20));
  grpc::CompletionQueue queue;
  grpc::ByteBuffer response;
  grpc::Status status;
  const auto call = stub.PrepareUnaryCall(&context, "/a/b", message, &queue);
  call->StartCall();
  call->Finish(&response, &status, nullptr);
  void* tag = nullptr;
  bool ok = false;
  queue.Next(&tag, &ok);
}

struct ServerCall {
  grpc::GenericServerContext context;
  grpc::GenericServerAsyncReaderWriter channel{&context};
  grpc::ByteBuffer message;
  enum { kArriving, kReading, kEnding } state = kArriving;
};

class QuotaServer {
 public:
  QuotaServer() {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
    builder.RegisterAsyncGenericService(&service_);
    grpc::ResourceQuota quota;
    quota.Resize(kQuotaBytes);
    builder.SetResourceQuota(quota);
    queue_ = builder.AddCompletionQueue();
    server_ = builder.BuildAndStart();
    for (int i = 0; i < kClients; ++i) Listen();
    thread_ = std::thread([this] { Serve(); });
  }
  // Returns how many messages came.
  int Stop() {
    server_->Shutdown(std::chrono::system_clock::now());
    thread_.join();
    return num_messages_;
  }
  int port() const { return port_; }

 private:
  void Listen() {
    auto* call = new ServerCall;
    ++num_calls_;
    service_.RequestCall(&call->context, &call->channel, queue_.get(), queue_.get(), call);
  }

  void Serve() {
    void* tag = nullptr;
    for (bool ok = false; queue_->Next(&tag, &ok);) {
      std::unique_ptr<ServerCall> call(static_cast<ServerCall*>(tag));
      if (call->state == ServerCall::kEnding || (call->state == ServerCall::kArriving && !ok)) {
        // The server has shut down, and nothing can begin on the queue any more.
        if (--num_calls_ == 0) queue_->Shutdown();
        continue;
      }
      if (call->state == ServerCall::kArriving) {
        Listen();
        call->state = ServerCall::kReading;
        call->channel.Read(&call->message, call.get());
      } else {
        if (ok) TakeMessage(*call);
        call->state = ServerCall::kEnding;
        call->channel.Finish(grpc::Status::OK, call.get());
      }
      call.release();  // the queue's
    }
  }

  void TakeMessage(ServerCall& call) {
    ReceivedMessage received;
    v1::AttendRequest request;
    EXPECT_TRUE(received.Parse(call.message, &request).ok());
    call.message.Clear();
    EXPECT_EQ(received.Data(request.q()).size(), kMessageBytes);
    ++num_messages_;
  }

  int port_ = 0;
  grpc::AsyncGenericService service_;
  std::unique_ptr<grpc::ServerCompletionQueue> queue_;
  std::unique_ptr<grpc::Server> server_;
  int num_calls_ = 0;  // that gRPC has
  int num_messages_ = 0;
  std::thread thread_;
};

TEST(ReceivedQuotaTest, AMessageIsLetGoWhileGrpcIsShortOfMemory) {
  v1::AttendRequest request;
  request.mutable_q()->set_data(std::string(kMessageBytes, 'x'));
  const grpc::Slice bytes(request.SerializeAsString());
  const grpc::ByteBuffer message(&bytes, 1);
  QuotaServer server;
  std::vector<std::jthread> clients;
  for (int i = 0; i < kClients; ++i) {
    clients.emplace_back([&] {
      for (int n = 0; n < kCallsOfAClient; ++n) Call(server.port(), message);
    });
  }
  clients.clear();
  EXPECT_GT(server.Stop(), 0);
}

}  // namespace
}  // namespace attention::codec
