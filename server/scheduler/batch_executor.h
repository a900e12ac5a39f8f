// The interface that the scheduler calls to have work computed. Implemented by engine/.
//
// Thread-safety: one call at a time, of executor and slices together, on any thread.
#pragma once

#include <atomic>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/domain/attention_request.h"

namespace attention::server {

struct Batch {
  std::vector<std::unique_ptr<AttentionRequest>> requests;
  absl::Time taken;  // when it left the queue
};

// A long request that is computed in slices, so that others need not wait for its end. It holds its
// request, and completes it exactly once.
class SlicedRequest {
 public:
  virtual ~SlicedRequest() = default;

  virtual const AttentionRequest& request() const = 0;
  // The share of the request's work that is done, 0 to 1; grows with every slice. At the end it is
  // the share that was computed, without what failed.
  virtual double progress() const = 0;

  // Goes on until done, or, after one unit of work at the least, until `should_yield` is set by
  // whatever thread. True: done, with success or not, and the request has been completed, or will
  // be by the executor's Recover.
  virtual bool RunSlice(const std::atomic<bool>& should_yield) = 0;

  // Gives up: takes back what was appended and completes the request with the status.
  virtual void Abandon(const absl::Status& status) = 0;
};

class BatchExecutor {
 public:
  virtual ~BatchExecutor() = default;

  // The first thing that the scheduler's own thread does.
  virtual void BeginThread() {}

  // Computes the batch and completes each of its requests exactly once: before returning, or, when
  // the device has failed, in Recover. Returns the share of each one's work that was computed, 0 to
  // 1: none of what failed. It may lack the last ones when memory is out; nothing counts for them.
  virtual std::vector<double> Execute(Batch batch) = 0;

  // True if the device has failed, so that Recover must come before anything else.
  virtual bool needs_recovery() const { return false; }
  // Sets the device up again, which may take seconds, then completes the requests that failed with
  // it: who retries must meet a device that is well. On the scheduler's own thread, or once that
  // has ended.
  virtual void Recover() {}

  // Between its slices batches and other sliced requests run, none of which touches the layers of
  // the sessions that this one has steps for. Null: it could not begin, and is completed.
  virtual std::unique_ptr<SlicedRequest> BeginSliced(std::unique_ptr<AttentionRequest> request,
                                                     absl::Time taken) = 0;
};

}  // namespace attention::server
