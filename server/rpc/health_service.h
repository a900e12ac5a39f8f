// grpc.health.v1.Health on the completion queue of all other calls.
//
// gRPC's own implementation uses the callback API, whose threads poll the same sockets: they take
// half of the messages from the thread that serves them, which then has to be woken for each (20 us
// of the 60 us of a small call).
//
// Thread-safety: SetServing from any thread.
#pragma once

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

namespace attention::server {

class HealthWatch;

class HealthServiceImpl final : public grpc::health::v1::Health::AsyncService {
 public:
  using Status = grpc::health::v1::HealthCheckResponse::ServingStatus;

  // Knows these services, not serving yet. `calls` must outlive the service.
  HealthServiceImpl(const std::vector<std::string>& services, CallsInFlight& calls);

  // Takes calls from now on; the server must have started.
  void Listen(grpc::ServerCompletionQueue& queue);

  // Of every service. Watchers are told.
  void SetServing(bool is_serving);

  // SERVICE_UNKNOWN for a service that is not known.
  Status StatusOf(const std::string& service) const;

  // A watch that is told of changes, until it is removed.
  void Add(const std::shared_ptr<HealthWatch>& watch);
  void Remove(const std::shared_ptr<HealthWatch>& watch);

  CallsInFlight& calls() const { return calls_; }

 private:
  const std::set<std::string> services_;
  CallsInFlight& calls_;
  mutable Mutex mutex_;
  bool is_serving_ ABSL_GUARDED_BY(mutex_) = false;
  std::set<std::shared_ptr<HealthWatch>> watches_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace attention::server
