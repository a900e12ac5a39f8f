#include "server/rpc/reflection_service.h"

#include <grpcpp/server_context.h>
#include <grpcpp/support/async_stream.h>

#include <memory>

#include "absl/strings/str_cat.h"
#include "server/rpc/completion_threads.h"

namespace attention::server {
namespace {

using grpc::reflection::v1::ServerReflectionRequest;
using grpc::reflection::v1::ServerReflectionResponse;

// One stream: reads, answers, reads again; one operation at a time. Deletes itself.
class ReflectionStream {
 public:
  static void Listen(ReflectionServiceImpl& service, grpc::ServerCompletionQueue& queue) {
    std::unique_ptr<ReflectionStream> stream(new ReflectionStream(service, queue));
    const bool is_listening = stream->place_.Listen([&, &call = *stream] {
      service.RequestServerReflectionInfo(&call.context_, &call.stream_, &queue, &queue,
                                          &call.arrived_);
    });
    if (is_listening) stream.release();  // gRPC's now
  }

 private:
  ReflectionStream(ReflectionServiceImpl& service, grpc::ServerCompletionQueue& queue)
      : place_(service.calls()), service_(service), queue_(queue) {}

  void OnArrived(bool ok) {
    if (!ok) {
      delete this;
      return;
    }
    service_.calls().KeepListening([this] { Listen(service_, queue_); });
    stream_.Read(&request_, &read_);
  }

  void OnRead(bool ok) {
    if (!ok) return stream_.Finish(grpc::Status::OK, &finished_);
    if (request_.ByteSizeLong() > Reflection::kMaxNameBytes) {
      return stream_.Finish({grpc::StatusCode::INVALID_ARGUMENT,
                             absl::StrCat("the request has ", request_.ByteSizeLong(),
                                          " bytes, expected at most ", Reflection::kMaxNameBytes)},
                            &finished_);
    }
    ServerReflectionResponse response;
    service_.reflection().Answer(request_, &response);
    stream_.Write(response, &written_);
  }

  void OnWritten(bool ok) {
    if (!ok) return stream_.Finish(grpc::Status::CANCELLED, &finished_);
    stream_.Read(&request_, &read_);
  }

  void OnFinished(bool) { delete this; }

  CallsInFlight::Place place_;
  ReflectionServiceImpl& service_;
  grpc::ServerCompletionQueue& queue_;
  grpc::ServerContext context_;
  ServerReflectionRequest request_;
  grpc::ServerAsyncReaderWriter<ServerReflectionResponse, ServerReflectionRequest> stream_{
      &context_};
  EventOf<ReflectionStream, &ReflectionStream::OnArrived> arrived_{this};
  EventOf<ReflectionStream, &ReflectionStream::OnRead> read_{this};
  EventOf<ReflectionStream, &ReflectionStream::OnWritten> written_{this};
  EventOf<ReflectionStream, &ReflectionStream::OnFinished> finished_{this};
};

}  // namespace

void ReflectionServiceImpl::Listen(grpc::ServerCompletionQueue& queue) {
  ReflectionStream::Listen(*this, queue);
}

}  // namespace attention::server
