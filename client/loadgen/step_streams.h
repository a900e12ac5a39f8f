// The open streams that the virtual users of a session workload share: those that its sessions end
// with, and with --streams those that its steps travel on. Thread-safe.
#pragma once

#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "attention/client/client.h"

namespace attention::loadgen {

class StepStreams {
 public:
  // Stream after stream goes to the next of `num_targets` servers. `max_outstanding`: unanswered
  // requests of one stream, at most.
  StepStreams(std::shared_ptr<client::Client> client, int num_streams, int num_targets,
              int max_outstanding);

  // The stream of a user: opened when it is first asked for, and anew when it broke. The
  // cancellation of `call` ends the stream; its other options do not count.
  absl::StatusOr<std::shared_ptr<client::StepStream>> Of(int user, const client::CallOptions& call);

 private:
  const std::shared_ptr<client::Client> client_;
  const std::size_t num_targets_;
  const int max_outstanding_;
  absl::Mutex mutex_;
  std::vector<std::shared_ptr<client::StepStream>> streams_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace attention::loadgen
