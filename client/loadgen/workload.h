// Makes the requests. A workload owns its virtual users: each has at most one thing going on at a
// time (a request, or its preparation), and its own random numbers and sessions.
//
// Thread-safety: different users may be driven from different threads at once; one user only by
// the thread that holds it (UserPool), whose lock also hands its state from thread to thread.
#pragma once

#include <functional>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "attention/client/client.h"
#include "client/loadgen/attention_case.h"
#include "client/loadgen/options.h"
#include "client/loadgen/tensor_pool.h"

namespace attention::loadgen {

struct Answer {
  client::Tensor output;
  client::Timing timing;
  AttentionCase request;
  Work work;
};
using AnswerCallback = std::function<void(absl::StatusOr<Answer>)>;

class Workload {
 public:
  virtual ~Workload() = default;

  virtual int num_users() const = 0;

  // True if Send may be called: the user has the session that its next request needs.
  virtual bool IsReady(int user) const = 0;
  // Makes the user ready: deletes a finished session, creates the next, fills its context. `done`
  // is called exactly once, possibly before this returns; on an error the user is not ready and
  // Prepare may be tried again.
  virtual void Prepare(int user, const client::CallOptions& call, client::StatusCallback done) = 0;

  // Sends the user's next request. `done` is called exactly once, possibly before this returns.
  virtual void Send(int user, const client::CallOptions& call, AnswerCallback done) = 0;

  // Gives back what the user holds in the server.
  virtual void Close(int user, const client::CallOptions& call, client::StatusCallback done) = 0;
};

// Elements of the largest tensor that the workload sends.
std::int64_t LargestTensor(const Options& options);

// `pool` must outlive the workload, and the workload every call it has made.
std::unique_ptr<Workload> MakeWorkload(const Options& options, const TensorPool& pool,
                                       std::shared_ptr<client::Client> client);

}  // namespace attention::loadgen
