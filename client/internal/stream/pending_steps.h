// The requests of a step stream that are not answered for good.
//
// A request whose tensors lie in shared memory may have to be sent again, with its tensors in the
// message, because the server does not know the memory. Steps of the same layers that had followed
// it by then were refused for their position, or attended over too little, and have to be sent
// again behind it. So a step that is refused for its position waits while one before it, in shared
// memory and of the same layer, is unanswered.
//
// Thread-safety: none.
#pragma once

#include <grpcpp/support/byte_buffer.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <unordered_map>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "attention/client/step_stream.h"
#include "client/internal/shared_memory/shared_memory_request.h"

namespace attention::client::internal {

struct PendingStep {
  void Fail(const absl::Status& status) const { done ? done(status) : session_done(status); }

  StepStream::Callback done;
  StepStream::SessionCallback session_done;     // of a session's creation, which has no `done`
  std::shared_ptr<SharedMemoryRequest> shared;  // null: its message holds the tensors
  grpc::ByteBuffer bytes;                       // of that message, where it may be sent again
  std::vector<std::size_t> layers;              // hashes of sessions' layers; empty if unused
};

class PendingSteps {
 public:
  struct Answered {
    PendingStep step;
    absl::StatusOr<StepResult> result;
  };
  // By id, which is the order in which they were first sent.
  using Steps = std::map<std::uint64_t, PendingStep>;
  using AnsweredSteps = std::map<std::uint64_t, Answered>;

  // Sessions' layers that the request's steps write, as PendingStep has them.
  static std::vector<std::size_t> LayersOf(const StepRequest& request);

  // A request that is sent, for the first time or again.
  void Add(std::uint64_t id, PendingStep step) { sent_.emplace(id, std::move(step)); }
  // Takes out the request that the server has answered; nullopt for an unknown id. One at a time:
  // HoldBack tells what becomes of a step before the next one is taken.
  std::optional<PendingStep> Take(std::uint64_t id);
  // True if an answered step is kept, moved from: it is to be sent again because it `is_lost` or
  // follows a step that is, or that is not known yet. False if its result stands.
  bool HoldBack(std::uint64_t id, PendingStep& step, bool is_lost,
                absl::StatusOr<StepResult>& result);

  struct Decided {
    AnsweredSteps answered;  // whose results stand
    Steps again;             // to be sent again, in order and before all others
  };
  // Lets go of all that is held back. To be called when no request that was sent is unanswered.
  Decided Decide();
  // Lets go of everything: of `again` those that were sent, too.
  Decided Clear();

  std::size_t size() const { return sent_.size() + again_.size() + refused_.size(); }
  std::size_t num_sent() const { return sent_.size(); }
  bool is_holding_back() const { return !again_.empty() || !refused_.empty(); }
  // True while the answer to a request in shared memory is awaited, or is being read.
  bool may_send_again() const;

 private:
  std::unordered_map<std::uint64_t, PendingStep> sent_;  // and not answered
  Steps again_;                                          // to be sent again
  AnsweredSteps refused_;                                // perhaps to be sent again
  bool has_taken_shared_ = false;                        // and HoldBack has not told of it
};

}  // namespace attention::client::internal
