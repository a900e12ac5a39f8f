#include "client/internal/stream/blocking_stream.h"

#include <grpcpp/support/client_callback.h>

#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "client/internal/call/call_context.h"
#include "client/internal/convert/error_details.h"
#include "client/internal/targets/callback_threads.h"

namespace attention::client::internal {

// A hold lets operations begin outside of reactions, until End gives it up.
class BlockingStream::Reactor final
    : public grpc::ClientBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  explicit Reactor(const CallSettings& settings) : context_(settings) {}

  // Not OK: the stream must not be started, as there is no token for it.
  const absl::Status& readiness() const { return context_.status(); }

  void Start(Endpoint& endpoint, const char* method) {
    KeepCallbackThreads();
    endpoint.stub.PrepareBidiStreamingCall(context_.grpc(), method, {}, this);
    AddHold();
    StartCall();
  }

  absl::Status Write(grpc::ByteBuffer message) {
    {
      absl::MutexLock lock(&mutex_);
      mutex_.Await(absl::Condition(this, &Reactor::CanWrite));
      if (!is_broken_) {
        is_writing_ = true;
        outgoing_ = std::move(message);
        StartWrite(&outgoing_);
        return absl::OkStatus();
      }
    }
    return End();
  }

  absl::StatusOr<grpc::ByteBuffer> Read() {
    if (ReadNext()) return std::move(incoming_);
    absl::Status status = End();
    if (status.ok()) status = absl::InternalError("the server ended the stream too early");
    return status;
  }

  void Cancel() { context_.grpc()->TryCancel(); }

  // Waits for the end of a stream that has broken, or was cancelled. Its status comes behind the
  // messages that nobody has read. Neither Write nor Read may follow but to end so.
  absl::Status End() {
    while (!has_ended_ && ReadNext()) {
    }
    if (!std::exchange(has_ended_, true)) RemoveHold();
    absl::MutexLock lock(&mutex_);
    mutex_.Await(absl::Condition(&is_done_));
    return status_;
  }

  void OnWriteDone(bool ok) override {
    absl::MutexLock lock(&mutex_);
    is_writing_ = false;
    is_broken_ = is_broken_ || !ok;
  }
  void OnReadDone(bool ok) override {
    absl::MutexLock lock(&mutex_);
    is_reading_ = false;
    is_read_to_end_ = !ok;
    is_broken_ = is_broken_ || !ok;
  }
  void OnDone(const grpc::Status& status) override {
    absl::MutexLock lock(&mutex_);
    status_ = FromGrpcStatus(status);
    is_done_ = true;
  }

 private:
  // False when there are no more messages.
  bool ReadNext() {
    absl::MutexLock lock(&mutex_);
    if (is_read_to_end_) return false;
    is_reading_ = true;
    StartRead(&incoming_);
    mutex_.Await(absl::Condition(this, &Reactor::HasRead));
    return !is_read_to_end_;
  }

  bool HasRead() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return !is_reading_; }
  bool CanWrite() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return !is_writing_ || is_broken_; }

  CallContext context_;
  grpc::ByteBuffer outgoing_;  // while it is written
  grpc::ByteBuffer incoming_;  // while it is read
  bool has_ended_ = false;     // of the caller's
  absl::Mutex mutex_;
  bool is_writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool is_reading_ ABSL_GUARDED_BY(mutex_) = false;
  bool is_read_to_end_ ABSL_GUARDED_BY(mutex_) = false;
  bool is_broken_ ABSL_GUARDED_BY(mutex_) = false;
  bool is_done_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
};

absl::StatusOr<std::unique_ptr<BlockingStream>> BlockingStream::Open(
    const std::shared_ptr<Transport>& transport, std::size_t target, const CallSettings& settings,
    const char* method) {
  auto reactor = std::make_unique<Reactor>(settings);
  if (!reactor->readiness().ok()) return reactor->readiness();
  reactor->Start(transport->targets().EndpointOf(target), method);
  return std::unique_ptr<BlockingStream>(new BlockingStream(std::move(reactor)));
}

BlockingStream::BlockingStream(std::unique_ptr<Reactor> reactor) : reactor_(std::move(reactor)) {}

BlockingStream::~BlockingStream() {
  reactor_->Cancel();
  reactor_->End().IgnoreError();
}

absl::Status BlockingStream::Write(grpc::ByteBuffer message) {
  return reactor_->Write(std::move(message));
}

absl::StatusOr<grpc::ByteBuffer> BlockingStream::Read() { return reactor_->Read(); }

}  // namespace attention::client::internal
