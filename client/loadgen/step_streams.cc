#include "client/loadgen/step_streams.h"

#include <utility>

namespace attention::loadgen {

StepStreams::StepStreams(std::shared_ptr<client::Client> client, int num_streams, int num_targets,
                         int max_outstanding)
    : client_(std::move(client)),
      num_targets_(static_cast<std::size_t>(num_targets)),
      max_outstanding_(max_outstanding),
      streams_(static_cast<std::size_t>(num_streams)) {}

absl::StatusOr<std::shared_ptr<client::StepStream>> StepStreams::Of(
    int user, const client::CallOptions& call) {
  absl::MutexLock lock(&mutex_);
  const std::size_t index = static_cast<std::size_t>(user) % streams_.size();
  std::shared_ptr<client::StepStream>& stream = streams_[index];
  if (stream != nullptr && stream->status().ok()) return stream;
  client::StepStreamOptions options;
  options.target = static_cast<int>(index % num_targets_);
  options.call.deadline = absl::InfiniteFuture();
  options.call.cancellation = call.cancellation;
  options.max_outstanding = max_outstanding_;
  auto opened = client_->OpenStepStream(options);
  if (!opened.ok()) return opened.status();
  stream = *std::move(opened);
  return stream;
}

}  // namespace attention::loadgen
