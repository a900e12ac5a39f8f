// Puts the tensors of a request where the target's server can read them.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "attention/client/attention.h"
#include "attention/client/session_types.h"
#include "client/internal/shared_memory/shared_memory_channels.h"

namespace attention::client::internal {

// The memory of a request that was moved.
struct SharedInputs {
  std::vector<std::shared_ptr<SharedSlot>> slots;
  // By output, 0 where it is not known.
  std::vector<std::size_t> output_bytes;
};

// The request with its tensors in memory that is shared with the target's server, copied unless
// they lie there. Null when that does not pay (the request is small, and no tensor lies there),
// there is no room, or a tensor is invalid: the server, or the encoder, then says what is wrong.
std::shared_ptr<const AttendRequest> MoveToSharedMemory(SharedMemoryChannels& channels,
                                                        std::size_t target,
                                                        const AttendRequest& request,
                                                        SharedInputs* inputs);
std::shared_ptr<const StepRequest> MoveToSharedMemory(SharedMemoryChannels& channels,
                                                      std::size_t target,
                                                      const StepRequest& request,
                                                      SharedInputs* inputs);

}  // namespace attention::client::internal
