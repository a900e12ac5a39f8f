// What the scheduler calls to have a batch computed. Implemented by engine/.
#pragma once

#include <memory>
#include <vector>

#include "absl/time/time.h"
#include "server/domain/attention_request.h"

namespace attention::server {

struct Batch {
  std::vector<std::unique_ptr<AttentionRequest>> requests;
  absl::Time taken;  // when it left the queue
};

class BatchExecutor {
 public:
  virtual ~BatchExecutor() = default;

  // Computes the batch and completes each of its requests exactly once before returning. Called
  // from one thread.
  virtual void Execute(Batch batch) = 0;
};

}  // namespace attention::server
