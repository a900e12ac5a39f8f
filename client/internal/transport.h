// What calls in flight share and keep alive: targets, timer, chance, options; and how a unary call
// runs over them.
#ifndef ATTENTION_CLIENT_INTERNAL_TRANSPORT_H_
#define ATTENTION_CLIENT_INTERNAL_TRANSPORT_H_

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/internal/call_context.h"
#include "client/internal/error_details.h"
#include "client/internal/retry_loop.h"
#include "client/internal/targets.h"
#include "client/internal/timer.h"
#include "client/options.h"

namespace attention::client::internal {

// Which target an attempt, numbered from 1, goes to.
using Route = std::function<size_t(int attempt)>;

// A generated asynchronous stub method, on one endpoint.
template <typename Request, typename Response>
using UnaryMethod = std::function<void(Endpoint&, grpc::ClientContext*, const Request*, Response*,
                                       std::function<void(grpc::Status)>)>;

class Transport : public std::enable_shared_from_this<Transport> {
 public:
  Transport(ClientOptions options, std::shared_ptr<Timer> timer, RandomSource random)
      : options_(std::move(options)),
        timer_(std::move(timer)),
        random_(std::move(random)),
        targets_(options_) {}

  const ClientOptions& options() const { return options_; }
  Timer& timer() { return *timer_; }
  Targets& targets() { return targets_; }

  CallSettings Settings(const CallOptions& call) {
    return ResolveSettings(options_, call, timer_->Now(), options_.default_timeout);
  }

  // The target whose turn it is; each retry goes to the next one.
  Route AnyTarget();
  static Route OneTarget(size_t target);

  // Calls `ready` with the target that is `worker`, or with its failure; asks every target for its
  // name first if that is not known. Once no target answers to the name, the first is given, whose
  // server then says what it knows of the session.
  void FindOwner(const std::string& worker, const CallSettings& settings,
                 std::function<void(absl::StatusOr<size_t>)> ready);

  // RESOURCE_EXHAUSTED if the message is larger than the client's options allow; gRPC would
  // otherwise serialise it first, and overflow beyond 2 GiB.
  absl::Status CheckSize(size_t num_bytes) const;

  void Retry(const CallSettings& settings, Attempt attempt,
             std::function<void(absl::Status)> done) {
    RunWithRetries(timer_, random_,
                   {.policy = settings.retry_policy,
                    .deadline = settings.deadline,
                    .cancellation = settings.cancellation},
                   std::move(attempt), std::move(done));
  }

  // Runs a unary call with retries. `done` also learns which target answered.
  template <typename Request, typename Response>
  void Unary(const CallSettings& settings, Route route, Request request,
             UnaryMethod<Request, Response> method,
             std::function<void(absl::StatusOr<Response>, size_t target)> done);

 private:
  const ClientOptions options_;
  const std::shared_ptr<Timer> timer_;
  const RandomSource random_;
  Targets targets_;
};

template <typename Request, typename Response>
void Transport::Unary(const CallSettings& settings, Route route, Request request,
                      UnaryMethod<Request, Response> method,
                      std::function<void(absl::StatusOr<Response>, size_t target)> done) {
  if (absl::Status status = CheckSize(request.ByteSizeLong()); !status.ok()) {
    return done(std::move(status), 0);
  }
  // Kept by whichever callback is pending, and by nothing else.
  struct Call {
    std::shared_ptr<Transport> transport;
    CallSettings settings;
    Request request;
    Response response;
    size_t target = 0;
  };
  auto call = std::make_shared<Call>();
  call->transport = shared_from_this();
  call->settings = settings;
  call->request = std::move(request);
  Retry(
      settings,
      [call, route = std::move(route), method = std::move(method)](
          int attempt, std::function<void(AttemptOutcome)> finished) {
        call->target = route(attempt);
        auto context = std::make_shared<CallContext>(call->settings);
        method(call->transport->targets().EndpointOf(call->target), context->grpc(), &call->request,
               &call->response,
               [call, context, finished = std::move(finished)](const grpc::Status& status) {
                 finished({.status = FromGrpcStatus(status)});
               });
      },
      [call, done = std::move(done)](absl::Status status) {
        if (!status.ok()) return done(std::move(status), call->target);
        done(std::move(call->response), call->target);
      });
}

}  // namespace attention::client::internal

#endif  // ATTENTION_CLIENT_INTERNAL_TRANSPORT_H_
