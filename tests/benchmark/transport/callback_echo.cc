// The echo on gRPC's callback API, whose threads are the library's own.
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <grpcpp/support/server_callback.h>

#include <deque>
#include <memory>
#include <mutex>

#include "attention/v1/attention_service.grpc.pb.h"
#include "tests/benchmark/transport/channel_arguments.h"
#include "tests/benchmark/transport/echo_answer.h"
#include "tests/benchmark/transport/echo_server.h"

namespace attention::bench {
namespace {

class StreamReactor final : public grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  StreamReactor() { StartRead(&request_); }

  void OnReadDone(bool ok) override {
    {
      std::lock_guard lock(mutex_);
      if (ok) {
        answers_.push_back(EchoAnswer(&request_));
      } else {
        is_read_ = true;
      }
      WriteNext();
    }
    if (!ok) return;
    request_.Clear();
    StartRead(&request_);
  }

  void OnWriteDone(bool ok) override {
    std::lock_guard lock(mutex_);
    is_writing_ = false;
    if (!ok) answers_.clear();
    WriteNext();
  }

  void OnDone() override { delete this; }

 private:
  void WriteNext() {
    if (is_writing_) return;
    if (!answers_.empty()) {
      is_writing_ = true;
      answer_ = std::move(answers_.front());
      answers_.pop_front();
      StartWrite(&answer_);
    } else if (is_read_) {
      is_writing_ = true;
      Finish(grpc::Status::OK);
    }
  }

  std::mutex mutex_;
  grpc::ByteBuffer request_;
  grpc::ByteBuffer answer_;  // must live until it is written
  std::deque<grpc::ByteBuffer> answers_;
  bool is_writing_ = false;
  bool is_read_ = false;
};

class CallbackService final
    : public v1::AttentionService::WithRawCallbackMethod_Attend<
          v1::AttentionService::WithRawCallbackMethod_AttendStream<v1::AttentionService::Service>> {
 public:
  grpc::ServerUnaryReactor* Attend(grpc::CallbackServerContext* context,
                                   const grpc::ByteBuffer* request,
                                   grpc::ByteBuffer* response) override {
    grpc::ByteBuffer shared = *request;  // a reference
    *response = EchoAnswer(&shared);
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }

  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* AttendStream(
      grpc::CallbackServerContext*) override {
    return new StreamReactor();
  }
};

}  // namespace

int ServeCallbacks(const EchoSettings& settings, const std::string& unix_path,
                   void (*on_started)(int port)) {
  CallbackService service;
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.AddListeningPort("unix:" + unix_path, grpc::InsecureServerCredentials());
  builder.RegisterService(&service);
  builder.SetMaxReceiveMessageSize(-1);
  Apply(settings.channel, &builder);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server == nullptr) return 1;
  on_started(port);
  server->Shutdown(std::chrono::system_clock::now());
  return 0;
}

}  // namespace attention::bench
