// What a request is. A workload owns its lanes: a lane is one user, with at most one thing going on
// at a time (a request, or its preparation), and its own random numbers and sessions.
//
// Thread-safety: different lanes may be used from different threads at once; one lane only by
// whoever holds it (LanePool), whose lock also hands its state from thread to thread.
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

  virtual int num_lanes() const = 0;

  // Whether Send may be called: the lane has the session that its next request needs.
  virtual bool IsReady(int lane) const = 0;
  // Makes the lane ready: deletes a finished session, creates the next, fills its context. `done`
  // is called exactly once, possibly before this returns; on an error the lane is not ready and
  // Prepare may be tried again.
  virtual void Prepare(int lane, const client::CallOptions& call, client::StatusCallback done) = 0;

  // Sends the lane's next request. `done` is called exactly once, possibly before this returns.
  virtual void Send(int lane, const client::CallOptions& call, AnswerCallback done) = 0;

  // Gives back what the lane holds in the server.
  virtual void Close(int lane, const client::CallOptions& call, client::StatusCallback done) = 0;
};

// Elements of the largest tensor that the workload sends.
int64_t LargestTensor(const Options& options);

// `pool` must outlive the workload, and the workload every call it has made.
std::unique_ptr<Workload> MakeWorkload(const Options& options, const TensorPool& pool,
                                       std::shared_ptr<client::Client> client);

}  // namespace attention::loadgen
