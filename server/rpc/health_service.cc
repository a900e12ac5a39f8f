#include "server/rpc/health_service.h"

#include <grpcpp/server_context.h>

#include <atomic>
#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/base/client_text.h"
#include "server/rpc/status_mapping.h"

namespace attention::server {
namespace {

using grpc::health::v1::HealthCheckRequest;
using grpc::health::v1::HealthCheckResponse;

// One Check. Deletes itself.
class HealthCheck final : private Receiver {
 public:
  static void Listen(HealthServiceImpl& service, grpc::ServerCompletionQueue& queue) {
    std::unique_ptr<HealthCheck> check(new HealthCheck(service, queue));
    const bool is_listening = check->place_.Listen([&, &call = *check] {
      service.RequestCheckAtHeaders(&call.context_, &call.channel_, &queue, &call.arrived_);
    });
    if (is_listening) check.release();  // gRPC's now
  }

 private:
  HealthCheck(HealthServiceImpl& service, grpc::ServerCompletionQueue& queue)
      : place_(service.calls()), service_(service), queue_(queue) {}

  void OnArrived(bool ok) {
    if (!ok) {
      delete this;
      return;
    }
    service_.calls().KeepListening([this] { Listen(service_, queue_); });
    waits_since_ = service_.clock().Now();
    receiving_ = service_.BeginReceiving(context_, this);
    channel_.Read(&request_, &received_);
  }

  absl::Time WaitsSince() const override { return waits_since_; }
  void EndReceiving(const absl::Status& status) override {
    channel_.Finish(ToGrpcStatus(status), &finished_);
  }

  void OnReceived(bool ok) {
    if (service_.EndReceiving(receiving_, ok ? request_.ByteSizeLong() : 0)) Answer(ok);
    Release();
  }

  void Answer(bool has_request) {
    if (!has_request) {
      channel_.Finish({grpc::StatusCode::CANCELLED, "the request has not come"}, &finished_);
      return;
    }
    HealthCheckResponse response;
    response.set_status(service_.StatusOf(request_.service()));
    if (response.status() == HealthCheckResponse::SERVICE_UNKNOWN) {
      channel_.Finish(
          {grpc::StatusCode::NOT_FOUND, absl::StrCat("service is ", Quoted(request_.service()),
                                                     ", expected one of this server's")},
          &finished_);
    } else {
      channel_.WriteAndFinish(response, grpc::WriteOptions(), grpc::Status::OK, &finished_);
    }
  }

  void OnFinished(bool) { Release(); }

  void Release() {
    if (pending_events_.fetch_sub(1, std::memory_order_acq_rel) == 1) delete this;
  }

  CallsInFlight::Place place_;
  HealthServiceImpl& service_;
  grpc::ServerCompletionQueue& queue_;
  grpc::ServerContext context_;
  HealthCheckRequest request_;
  HealthServiceImpl::Channel channel_{&context_};
  ReceivingLedger::Place receiving_;
  absl::Time waits_since_;
  std::atomic<int> pending_events_{2};  // received and finished
  EventOf<HealthCheck, &HealthCheck::OnArrived> arrived_{this};
  EventOf<HealthCheck, &HealthCheck::OnReceived> received_{this};
  EventOf<HealthCheck, &HealthCheck::OnFinished> finished_{this};
};

}  // namespace

// One Watch: sends the latest status, one write at a time, so that a slow reader skips what has
// changed meanwhile. Holds itself until gRPC is done with the call.
class HealthWatch : public std::enable_shared_from_this<HealthWatch>, private Receiver {
 public:
  static void Listen(HealthServiceImpl& service, grpc::ServerCompletionQueue& queue) {
    const auto watch = std::make_shared<HealthWatch>(service, queue);
    {
      MutexLock lock(&watch->mutex_);
      watch->self_ = watch;
    }
    const bool is_listening = watch->place_.Listen([&] {
      watch->context_.AsyncNotifyWhenDone(&watch->done_);
      service.RequestWatchAtHeaders(&watch->context_, &watch->channel_, &queue, &watch->arrived_);
    });
    if (is_listening) return;
    MutexLock lock(&watch->mutex_);
    watch->self_.reset();
  }

  HealthWatch(HealthServiceImpl& service, grpc::ServerCompletionQueue& queue)
      : place_(service.calls()), service_(service), queue_(queue) {}

  // The status may have changed.
  void Update() {
    MutexLock lock(&mutex_);
    WriteIfChanged();
  }

 private:
  void OnArrived(bool ok) {
    if (!ok) {  // the server shuts down; a call that never began is never done either
      std::shared_ptr<HealthWatch> last_share;  // outlives the lock
      MutexLock lock(&mutex_);
      last_share = std::move(self_);
      return;
    }
    service_.calls().KeepListening([this] { Listen(service_, queue_); });
    {
      MutexLock lock(&mutex_);
      waits_since_ = service_.clock().Now();
    }
    receiving_ = service_.BeginReceiving(context_, this);
    channel_.Read(&request_, &received_);
  }

  absl::Time WaitsSince() const override {
    MutexLock lock(&mutex_);
    return waits_since_;
  }
  void EndReceiving(const absl::Status& status) override {
    MutexLock lock(&mutex_);
    is_done_ = true;
    ++pending_events_;
    channel_.Finish(ToGrpcStatus(status), &finished_);
  }

  void OnReceived(bool ok) {
    if (service_.EndReceiving(receiving_, ok ? request_.ByteSizeLong() : 0)) {
      MutexLock lock(&mutex_);
      if (!ok && !is_done_) {
        is_done_ = true;
        ++pending_events_;
        channel_.Finish({grpc::StatusCode::CANCELLED, "the request has not come"}, &finished_);
      }
      if (!is_done_) service_.Add(shared_from_this());
      WriteIfChanged();
    }
    EventHandled();
  }

  void OnFinished(bool) { EventHandled(); }

  void OnWritten(bool) {
    {
      MutexLock lock(&mutex_);
      is_writing_ = false;
      WriteIfChanged();
    }
    EventHandled();
  }

  // The client has gone, or the server has cancelled what was left.
  void OnDone(bool) {
    {
      MutexLock lock(&mutex_);
      is_done_ = true;
    }
    service_.Remove(shared_from_this());
    EventHandled();
  }

  void WriteIfChanged() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (is_writing_ || is_done_) return;
    const HealthServiceImpl::Status status = service_.StatusOf(request_.service());
    if (sent_ == status) return;
    sent_ = status;
    HealthCheckResponse response;
    response.set_status(status);
    is_writing_ = true;
    ++pending_events_;
    channel_.Write(response, &written_);
  }

  void EventHandled() {
    std::shared_ptr<HealthWatch> last_share;  // outlives the lock
    MutexLock lock(&mutex_);
    if (--pending_events_ == 0) last_share = std::move(self_);
  }

  CallsInFlight::Place place_;
  HealthServiceImpl& service_;
  grpc::ServerCompletionQueue& queue_;
  grpc::ServerContext context_;
  HealthCheckRequest request_;
  HealthServiceImpl::Channel channel_{&context_};
  ReceivingLedger::Place receiving_;
  EventOf<HealthWatch, &HealthWatch::OnArrived> arrived_{this};
  EventOf<HealthWatch, &HealthWatch::OnReceived> received_{this};
  EventOf<HealthWatch, &HealthWatch::OnFinished> finished_{this};
  EventOf<HealthWatch, &HealthWatch::OnWritten> written_{this};
  EventOf<HealthWatch, &HealthWatch::OnDone> done_{this};

  mutable Mutex mutex_;
  absl::Time waits_since_ ABSL_GUARDED_BY(mutex_);
  std::shared_ptr<HealthWatch> self_ ABSL_GUARDED_BY(mutex_);
  int pending_events_ ABSL_GUARDED_BY(mutex_) = 2;  // arrived and done
  bool is_writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool is_done_ ABSL_GUARDED_BY(mutex_) = false;
  std::optional<HealthServiceImpl::Status> sent_ ABSL_GUARDED_BY(mutex_);
};

HealthServiceImpl::HealthServiceImpl(const std::vector<std::string>& services,
                                     const ServiceContext& context)
    : services_(services.begin(), services.end()), context_(context) {}

void HealthServiceImpl::Listen(grpc::ServerCompletionQueue& queue) {
  HealthCheck::Listen(*this, queue);
  HealthWatch::Listen(*this, queue);
}

void HealthServiceImpl::SetServing(bool is_serving) {
  std::set<std::shared_ptr<HealthWatch>> watches;
  {
    MutexLock lock(&mutex_);
    is_serving_ = is_serving;
    watches = watches_;
  }
  for (const std::shared_ptr<HealthWatch>& watch : watches) watch->Update();
}

HealthServiceImpl::Status HealthServiceImpl::StatusOf(const std::string& service) const {
  if (services_.count(service) == 0) return HealthCheckResponse::SERVICE_UNKNOWN;
  MutexLock lock(&mutex_);
  return is_serving_ ? HealthCheckResponse::SERVING : HealthCheckResponse::NOT_SERVING;
}

void HealthServiceImpl::Add(const std::shared_ptr<HealthWatch>& watch) {
  MutexLock lock(&mutex_);
  watches_.insert(watch);
}

void HealthServiceImpl::Remove(const std::shared_ptr<HealthWatch>& watch) {
  MutexLock lock(&mutex_);
  watches_.erase(watch);
}

}  // namespace attention::server
