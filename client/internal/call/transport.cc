#include "client/internal/call/transport.h"

#include <new>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "attention/v1/server_service.pb.h"
#include "client/internal/base/status_macros.h"
#include "client/internal/call/blocking_call.h"
#include "client/internal/targets/callback_threads.h"

namespace attention::client::internal {
namespace {

// Counts the answers of a search; the last one, or the first that is the worker, ends it.
class Search {
 public:
  Search(std::string worker, size_t num_targets, std::function<void(absl::StatusOr<size_t>)> ready)
      : worker_(std::move(worker)), num_pending_(num_targets), ready_(std::move(ready)) {}

  // `answer`: the target's name.
  void OnAnswer(const absl::StatusOr<std::string>& answer, size_t target) {
    std::function<void(absl::StatusOr<size_t>)> ready;
    bool is_found = false;
    absl::Status failure;
    {
      absl::MutexLock lock(&mutex_);
      --num_pending_;
      if (!answer.ok()) failure_.Update(answer.status());
      is_found = answer.ok() && *answer == worker_;
      if (is_found || num_pending_ == 0) ready.swap(ready_);
      failure = failure_;
    }
    if (!ready) return;
    if (is_found) return ready(target);
    // A target that did not answer may be the owner: better its failure than another's "moved".
    if (!failure.ok()) return ready(std::move(failure));
    ready(size_t{0});
  }

 private:
  const std::string worker_;
  absl::Mutex mutex_;
  size_t num_pending_ ABSL_GUARDED_BY(mutex_);
  absl::Status failure_ ABSL_GUARDED_BY(mutex_);
  std::function<void(absl::StatusOr<size_t>)> ready_ ABSL_GUARDED_BY(mutex_);
};

// The worker that a GetServerInfo answer names.
absl::StatusOr<std::string> NameIn(const absl::StatusOr<grpc::ByteBuffer>& answer) {
  if (!answer.ok()) return answer.status();
  return ReadAnswer<v1::GetServerInfoResponse>(
      *answer, [](const v1::GetServerInfoResponse& info, const codec::ReceivedMessage&) {
        return absl::StatusOr<std::string>(info.worker());
      });
}

// One unary call, all its attempts together. Kept by whichever callback is pending, and by nothing
// else.
struct Call : public std::enable_shared_from_this<Call> {
  void Start(int attempt, std::function<void(AttemptOutcome)> finished) {
    target = route(attempt);
    Endpoint& endpoint = transport->targets().EndpointOf(target);
    response.Clear();
    absl::StatusOr<grpc::ByteBuffer> made = transport->Serialize(*request, target);
    if (!made.ok()) return finished({.status = std::move(made).status(), .can_retry = false});
    bytes = *std::move(made);
    // Later attempts start on gRPC's threads, which must not block.
    if (settings.may_block && attempt == 1) {
      CallContext context(settings);
      const grpc::Status status = CallHere(endpoint, context.grpc(), method, bytes, &response);
      return finished({.status = Outcome(status)});
    }
    KeepCallbackThreads();
    auto context = std::make_shared<CallContext>(settings);
    endpoint.stub.UnaryCall(
        context->grpc(), method, {}, &bytes, &response,
        [self = shared_from_this(), context, finished = std::move(finished)](
            const grpc::Status& status) { finished({.status = self->Outcome(status)}); });
  }

  absl::Status Outcome(const grpc::Status& status) const {
    absl::Status outcome = FromGrpcStatus(status);
    request->OnOutcome(outcome);
    if (outcome.ok() && !response.Valid()) {
      return absl::InternalError(
          absl::StrCat("the server answered ", method, " without a message"));
    }
    return outcome;
  }

  std::shared_ptr<Transport> transport;
  CallSettings settings;
  Route route;
  const char* method = nullptr;
  std::shared_ptr<OutgoingRequest> request;
  grpc::ByteBuffer bytes;  // of the last attempt
  grpc::ByteBuffer response;
  size_t target = 0;
};

}  // namespace

Route Transport::AnyTarget() {
  return [first = targets_.TakeTurn(), count = targets_.size()](int attempt) {
    return (first + static_cast<size_t>(attempt) - 1) % count;
  };
}

Route Transport::OneTarget(size_t target) {
  return [target](int) { return target; };
}

void Transport::FindOwner(const std::string& worker, const CallSettings& settings,
                          std::function<void(absl::StatusOr<size_t>)> ready) {
  if (const std::optional<size_t> known = targets_.TargetOf(worker); known.has_value()) {
    return ready(*known);
  }
  CallSettings at_once = settings;
  at_once.may_block = false;
  auto search = std::make_shared<Search>(worker, targets_.size(), std::move(ready));
  for (size_t target = 0; target < targets_.size(); ++target) {
    Unary(at_once, OneTarget(target), ATTN_METHOD(ServerService, GetServerInfo),
          Serialize(codec::OutgoingMessage(v1::GetServerInfoRequest())),
          [self = shared_from_this(), search](const absl::StatusOr<grpc::ByteBuffer>& answer,
                                              size_t answered) {
            const absl::StatusOr<std::string> name = NameIn(answer);
            if (name.ok()) self->targets_.Learn(*name, answered);
            search->OnAnswer(name, answered);
          });
  }
}

absl::StatusOr<grpc::ByteBuffer> Transport::Serialize(codec::OutgoingMessage message) const {
  if (message.size() > static_cast<size_t>(options_.max_message_bytes)) {
    return absl::ResourceExhaustedError(absl::StrCat("the request has ", message.size(),
                                                     " bytes, max_message_bytes is ",
                                                     options_.max_message_bytes));
  }
  try {
    return std::move(message).SerializeInOnePiece();
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError(
        absl::StrCat("out of memory for a request of ", message.size(), " bytes"));
  }
}

absl::StatusOr<grpc::ByteBuffer> Transport::Serialize(OutgoingRequest& request,
                                                      size_t target) const {
  if (request.is_bytes()) return request.bytes();
  ATTN_ASSIGN_OR_RETURN(codec::OutgoingMessage message, request.MessageFor(target));
  return Serialize(std::move(message));
}

void Transport::Unary(const CallSettings& settings, Route route, const char* method,
                      absl::StatusOr<grpc::ByteBuffer> request, AnswerCallback done) {
  if (!request.ok()) return done(std::move(request).status(), 0);
  Unary(settings, std::move(route), method, std::make_shared<OutgoingRequest>(*std::move(request)),
        std::move(done));
}

void Transport::Unary(const CallSettings& settings, Route route, const char* method,
                      std::shared_ptr<OutgoingRequest> request, AnswerCallback done) {
  auto call = std::make_shared<Call>();
  call->transport = shared_from_this();
  call->settings = settings;
  call->route = std::move(route);
  call->method = method;
  call->request = std::move(request);
  Retry(
      settings,
      [call](int attempt, std::function<void(AttemptOutcome)> finished) {
        call->Start(attempt, std::move(finished));
      },
      [call, done = std::move(done)](absl::Status status) {
        if (!status.ok()) return done(std::move(status), call->target);
        done(std::move(call->response), call->target);
      });
}

}  // namespace attention::client::internal
