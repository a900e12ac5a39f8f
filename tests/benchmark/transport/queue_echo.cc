// The echo on completion queues: raw methods of the generated service, as the server has them.
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <grpcpp/server_context.h>

#include <cstdio>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "attention/v1/attention_service.grpc.pb.h"
#include "tests/benchmark/transport/channel_arguments.h"
#include "tests/benchmark/transport/echo_answer.h"
#include "tests/benchmark/transport/echo_server.h"
#include "tests/benchmark/transport/worker_thread.h"

namespace attention::bench {
namespace {

using RawService = v1::AttentionService::WithRawMethod_Attend<
    v1::AttentionService::WithRawMethod_AttendStream<v1::AttentionService::Service>>;

// Calls waiting for a client on each queue: more than any contender has in flight.
constexpr int kWaitingCalls = 16;

// An event that a completion queue returns.
class Event {
 public:
  virtual ~Event() = default;
  virtual void Happened(bool ok) = 0;
};

// The parts of the server that a call uses. All of them outlive it.
struct Place {
  RawService* service;
  grpc::ServerCompletionQueue* queue;
  WorkerThread* worker;  // null: the queue's thread answers
  grpc::ByteBuffer (*answer)(grpc::ByteBuffer* request);
};

void RunIn(const Place& place, const std::function<void()>& job) {
  if (place.worker != nullptr) {
    place.worker->Give(job);
  } else {
    job();
  }
}

class UnaryCall final : public Event {
 public:
  explicit UnaryCall(const Place& place) : place_(place), responder_(&context_) {
    place_.service->RequestAttend(&context_, &request_, &responder_, place_.queue, place_.queue,
                                  this);
  }

  void Happened(bool ok) override {
    if (!ok || is_answered_) {
      delete this;
      return;
    }
    new UnaryCall(place_);
    is_answered_ = true;
    RunIn(place_, [this] { responder_.Finish(place_.answer(&request_), grpc::Status::OK, this); });
  }

 private:
  const Place place_;
  grpc::ServerContext context_;
  grpc::ByteBuffer request_;
  grpc::ServerAsyncResponseWriter<grpc::ByteBuffer> responder_;
  bool is_answered_ = false;
};

// Reads ahead while answers are written. Freed when both directions are done.
class StreamCall final {
 public:
  explicit StreamCall(const Place& place) : place_(place), stream_(&context_) {
    place_.service->RequestAttendStream(&context_, &stream_, place_.queue, place_.queue, &started_);
  }

 private:
  struct Step final : Event {
    Step(StreamCall* call, void (StreamCall::*handler)(bool)) : call(call), handler(handler) {}
    void Happened(bool ok) override { (call->*handler)(ok); }
    StreamCall* call;
    void (StreamCall::*handler)(bool);
  };

  void Started(bool ok) {
    if (!ok) {
      delete this;
      return;
    }
    new StreamCall(place_);
    stream_.Read(&request_, &read_);
  }

  void Read(bool ok) {
    RunIn(place_, [this, ok] {
      std::lock_guard lock(mutex_);
      if (ok) {
        answers_.push_back(place_.answer(&request_));
        request_.Clear();
        stream_.Read(&request_, &read_);
      } else {
        is_read_ = true;
      }
      WriteNext();
    });
  }

  void Written(bool ok) {
    std::lock_guard lock(mutex_);
    is_writing_ = false;
    if (!ok) answers_.clear();
    WriteNext();
  }

  void Finished(bool) { delete this; }

  void WriteNext() {
    if (is_writing_) return;
    if (!answers_.empty()) {
      is_writing_ = true;
      const grpc::ByteBuffer answer = std::move(answers_.front());
      answers_.pop_front();
      stream_.Write(answer, &written_);
    } else if (is_read_) {
      is_writing_ = true;
      stream_.Finish(grpc::Status::OK, &finished_);
    }
  }

  const Place place_;
  grpc::ServerContext context_;
  grpc::ServerAsyncReaderWriter<grpc::ByteBuffer, grpc::ByteBuffer> stream_;
  Step started_{this, &StreamCall::Started};
  Step read_{this, &StreamCall::Read};
  Step written_{this, &StreamCall::Written};
  Step finished_{this, &StreamCall::Finished};
  std::mutex mutex_;  // two threads may share the queue
  grpc::ByteBuffer request_;
  std::deque<grpc::ByteBuffer> answers_;
  bool is_writing_ = false;
  bool is_read_ = false;
};

void Poll(grpc::ServerCompletionQueue* queue) {
  void* tag = nullptr;
  bool ok = false;
  while (queue->Next(&tag, &ok)) static_cast<Event*>(tag)->Happened(ok);
}

}  // namespace

int ServeQueues(const EchoSettings& settings, const std::string& unix_path,
                void (*on_started)(int port)) {
  RawService service;
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.AddListeningPort("unix:" + unix_path, grpc::InsecureServerCredentials());
  builder.RegisterService(&service);
  builder.SetMaxReceiveMessageSize(-1);
  Apply(settings.channel, &builder);
  std::vector<std::unique_ptr<grpc::ServerCompletionQueue>> queues;
  for (int i = 0; i < settings.num_queues; ++i) queues.push_back(builder.AddCompletionQueue());
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server == nullptr) return 1;
  const auto worker = settings.has_worker ? std::make_unique<WorkerThread>() : nullptr;
  std::vector<std::thread> threads;
  for (auto& queue : queues) {
    const Place place{&service, queue.get(), worker.get(),
                      settings.is_copying ? CopiedEchoAnswer : EchoAnswer};
    for (int i = 0; i < kWaitingCalls; ++i) {
      new UnaryCall(place);
      new StreamCall(place);
    }
    for (int i = 0; i < settings.threads_per_queue; ++i) threads.emplace_back(Poll, queue.get());
  }
  on_started(port);
  server->Shutdown(std::chrono::system_clock::now());
  for (auto& queue : queues) queue->Shutdown();
  for (std::thread& thread : threads) thread.join();
  return 0;
}

}  // namespace attention::bench
