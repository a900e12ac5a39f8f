// An open bidirectional stream of steps: the cheapest way to drive many sessions of one server,
// token after token. Requests are pipelined: any number (up to StepStreamOptions::max_outstanding)
// may be unanswered. Requests of one session and layer are applied in the order they were given;
// answers come as they complete.
//
// Thread-safe. A stream that breaks fails every outstanding request, once, with the status it broke
// with, and every later one at once; open another then. Destroying a stream cancels it: what is
// outstanding fails with CANCELLED, possibly after the destructor has returned, which does not
// block.
//
// Callbacks run on the library's threads, without locks held, and must not block; they may call
// into the stream.
#pragma once

#include <functional>
#include <future>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "attention/client/session_types.h"

namespace attention::client {

class StepStream {
 public:
  using Callback = std::function<void(absl::StatusOr<StepResult>)>;
  using SessionCallback = std::function<void(absl::StatusOr<SessionInfo>)>;

  virtual ~StepStream() = default;

  // Sends a request; `done` is called exactly once. The request's tensors need to live only until
  // this returns. A failure of the request as a whole is `done`'s status, failures of single steps
  // are in its results. RESOURCE_EXHAUSTED: max_outstanding reached; FAILED_PRECONDITION: after
  // Finish.
  virtual void StepAsync(const StepRequest& request, Callback done) = 0;

  // Creates a session that ends with the stream, however the stream ends: so a program that dies
  // leaves nothing behind in the server. Steps of it may be sent on this stream, on others and as
  // calls. Client::OpenSession makes the Session. Fails as Client::CreateSession and as
  // StepAsync.
  virtual void CreateSessionAsync(const SessionOptions& request, SessionCallback done) = 0;

  // No more requests; waits until all are answered and the server has closed the stream. Returns
  // the stream's status. Blocks; not to be called from a callback.
  virtual absl::Status Finish() = 0;

  // Breaks the stream: what is outstanding fails with CANCELLED. Does not block.
  virtual void Cancel() = 0;

  // OK while the stream takes requests, and after a Finish that went well.
  virtual absl::Status status() const = 0;

  // As StepAsync.
  std::future<absl::StatusOr<StepResult>> StepFuture(const StepRequest& request);
  // As StepAsync, waiting for the answer. Not to be called from a callback.
  absl::StatusOr<StepResult> Step(const StepRequest& request);
  // As CreateSessionAsync, waiting for the answer. Not to be called from a callback.
  absl::StatusOr<SessionInfo> CreateSession(const SessionOptions& request);
};

}  // namespace attention::client
