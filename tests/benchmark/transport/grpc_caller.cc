#include <grpcpp/client_context.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/generic/generic_stub.h>

#include <cstdio>
#include <cstdlib>
#include <deque>
#include <optional>

#include "tests/benchmark/transport/caller.h"
#include "tests/benchmark/transport/channel_arguments.h"

namespace attention::bench {
namespace {

constexpr std::size_t kMaxErrorText = 500;

[[noreturn]] void Fail(const std::string& method, const std::string& why) {
  std::fprintf(stderr, "%s: %s\n", method.c_str(), why.c_str());
  std::exit(1);
}

void CheckAnswer(const Load& load, const grpc::ByteBuffer& answer) {
  if (answer.Length() >= load.min_answer_bytes) return;
  // A stream's errors are answers; their message is readable as it is.
  grpc::Slice slice;
  std::string text;
  if (answer.DumpToSingleSlice(&slice).ok()) text.assign(slice.begin(), slice.end());
  std::erase_if(text, [](unsigned char letter) { return letter < ' ' || letter > '~'; });
  Fail(load.method, "an answer of " + std::to_string(answer.Length()) +
                        " bytes, expected at least " + std::to_string(load.min_answer_bytes) +
                        ": " + text.substr(0, kMaxErrorText));
}

class GrpcCaller final : public Caller {
 public:
  explicit GrpcCaller(const std::shared_ptr<grpc::Channel>& channel) : stub_(channel) {}
  ~GrpcCaller() override {
    queue_.Shutdown();
    void* tag = nullptr;
    bool ok = false;
    while (queue_.Next(&tag, &ok)) continue;
  }

  Sample Run(const Load& load, Requests& requests) override {
    return load.is_stream ? RunStream(load, requests) : RunUnary(load, requests);
  }

 private:
  struct Slot {
    std::optional<grpc::ClientContext> context;
    std::unique_ptr<grpc::ClientAsyncResponseReader<grpc::ByteBuffer>> reader;
    grpc::ByteBuffer answer;
    grpc::Status status;
    std::size_t request_bytes = 0;
    double started = 0;
  };

  void Start(const Load& load, Requests& requests, Slot* slot) {
    const grpc::ByteBuffer request = requests.Next();
    slot->request_bytes = request.Length();
    slot->answer.Clear();
    slot->started = Now();
    slot->context.emplace();
    slot->reader = stub_.PrepareUnaryCall(&*slot->context, load.method, request, &queue_);
    slot->reader->StartCall();
    slot->reader->Finish(&slot->answer, &slot->status, slot);
  }

  Sample RunUnary(const Load& load, Requests& requests) {
    Recorder recorder(load.seconds);
    std::deque<Slot> slots(static_cast<std::size_t>(load.in_flight));
    for (Slot& slot : slots) Start(load, requests, &slot);
    int num_running = load.in_flight;
    void* tag = nullptr;
    bool ok = false;
    while (num_running > 0 && queue_.Next(&tag, &ok)) {
      Slot* slot = static_cast<Slot*>(tag);
      if (!slot->status.ok()) Fail(load.method, slot->status.error_message());
      CheckAnswer(load, slot->answer);
      recorder.Add(slot->started, slot->request_bytes + slot->answer.Length() + load.shared_bytes);
      if (recorder.IsOver()) {
        --num_running;
      } else {
        Start(load, requests, slot);
      }
    }
    return recorder.Finish();
  }

  bool Await(void* expected) {
    void* tag = nullptr;
    bool ok = false;
    return queue_.Next(&tag, &ok) && tag == expected && ok;
  }

  Sample RunStream(const Load& load, Requests& requests) {
    grpc::ClientContext context;
    const auto stream = stub_.PrepareCall(&context, load.method, &queue_);
    int start_tag, read_tag, write_tag, end_tag;  // their addresses are what counts
    stream->StartCall(&start_tag);
    if (!Await(&start_tag)) Fail(load.method, "the stream could not be opened");
    Recorder recorder(load.seconds);
    struct Sent {
      double time;
      std::size_t bytes;
    };
    std::deque<Sent> unanswered;
    grpc::ByteBuffer answer;
    bool is_writing = false, is_over = false;
    const auto write_more = [&] {
      is_over = is_over || recorder.IsOver();
      if (is_writing || is_over || static_cast<int>(unanswered.size()) >= load.in_flight) return;
      const grpc::ByteBuffer request = requests.Next();
      unanswered.push_back({Now(), request.Length()});
      is_writing = true;
      stream->Write(request, &write_tag);
    };
    stream->Read(&answer, &read_tag);
    write_more();
    while (!unanswered.empty() || is_writing) {
      void* tag = nullptr;
      bool ok = false;
      queue_.Next(&tag, &ok);
      if (!ok) Fail(load.method, "the stream ended early");
      if (tag == &write_tag) is_writing = false;
      if (tag == &read_tag) {
        CheckAnswer(load, answer);
        recorder.Add(unanswered.front().time,
                     unanswered.front().bytes + answer.Length() + load.shared_bytes);
        unanswered.pop_front();
        stream->Read(&answer, &read_tag);
      }
      write_more();
    }
    grpc::Status status;
    stream->WritesDone(&write_tag);
    stream->Finish(&status, &end_tag);
    // Both of them and the read that meets the end, which complete in any order: one left in the
    // queue would be completed into a call that is gone.
    bool ok = false;
    void* tag = nullptr;
    for (int num_left = 3; num_left > 0; --num_left) queue_.Next(&tag, &ok);
    return recorder.Finish();
  }

  grpc::GenericStub stub_;
  grpc::CompletionQueue queue_;
};

}  // namespace

std::shared_ptr<grpc::Channel> Connect(const std::string& target, const ChannelSettings& settings) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  Apply(settings, &arguments);
  return grpc::CreateCustomChannel(target, grpc::InsecureChannelCredentials(), arguments);
}

std::unique_ptr<Caller> MakeGrpcCaller(const std::shared_ptr<grpc::Channel>& channel) {
  return std::make_unique<GrpcCaller>(channel);
}

}  // namespace attention::bench
