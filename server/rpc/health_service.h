// grpc.health.v1.Health on the completion queue of all other calls.
//
// gRPC's own implementation uses the callback API, whose threads poll the same sockets: they take
// half of the messages from the thread that serves them, which then has to be woken for each (20 us
// of the 60 us of a small call).
//
// Thread-safety: SetServing from any thread.
#pragma once

#include <grpcpp/support/async_stream.h>

#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/string_view.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "server/base/mutex.h"
#include "server/rpc/calls_in_flight.h"
#include "server/rpc/completion_threads.h"
#include "server/rpc/service_context.h"
#include "server/rpc/taken_at_headers.h"

namespace attention::server {

class HealthWatch;

class HealthServiceImpl final
    : public grpc::health::v1::Health::WithRawMethod_Check<
          grpc::health::v1::Health::WithRawMethod_Watch<TakenAtHeaders<grpc::health::v1::Health>>> {
 public:
  using Status = grpc::health::v1::HealthCheckResponse::ServingStatus;

  // Knows these services, not serving yet. `context` must outlive the service.
  HealthServiceImpl(const std::vector<std::string>& services, const ServiceContext& context);

  // Takes calls from now on; the server must have started.
  void Listen(grpc::ServerCompletionQueue& queue);

  // Sets the status of every service. Watchers are told.
  void SetServing(bool is_serving);

  // SERVICE_UNKNOWN for a service that is not known.
  Status StatusOf(const std::string& service) const;

  // A watch that is told of changes, until it is removed.
  void Add(const std::shared_ptr<HealthWatch>& watch);
  void Remove(const std::shared_ptr<HealthWatch>& watch);

  CallsInFlight& calls() const { return context_.calls_in_flight; }

  // A call with its one request, which is told to the ledger until it has come.
  using Channel = grpc::ServerAsyncReaderWriter<grpc::health::v1::HealthCheckResponse,
                                                grpc::health::v1::HealthCheckRequest>;
  void RequestCheckAtHeaders(grpc::ServerContext* context, Channel* channel,
                             grpc::ServerCompletionQueue* queue, void* tag) {
    RequestAtHeaders(check_index_, context, channel, queue, tag);
  }
  void RequestWatchAtHeaders(grpc::ServerContext* context, Channel* channel,
                             grpc::ServerCompletionQueue* queue, void* tag) {
    RequestAtHeaders(watch_index_, context, channel, queue, tag);
  }
  ReceivingLedger::Place BeginReceiving(const grpc::ServerContext& call, Receiver* receiver) {
    return context_.receiving.Begin(call.peer(), ReceivingLedger::Kind::kUnary, receiver,
                                    context_.clock.Now());
  }
  // False: the call was ended.
  bool EndReceiving(const ReceivingLedger::Place& place, std::size_t bytes) {
    return context_.receiving.Leave(place, bytes);
  }
  const Clock& clock() const { return context_.clock; }

 private:
  const std::set<std::string> services_;
  const ServiceContext& context_;
  const int check_index_ = IndexOf("Check");
  const int watch_index_ = IndexOf("Watch");
  mutable Mutex mutex_;
  bool is_serving_ ABSL_GUARDED_BY(mutex_) = false;
  std::set<std::shared_ptr<HealthWatch>> watches_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace attention::server
