// Requests to the attention server with next to nothing to compute, encoded beforehand.
#pragma once

#include <grpcpp/channel.h>

#include <memory>

#include "tests/benchmark/transport/caller.h"
#include "tests/benchmark/transport/shared_channel.h"

namespace attention::bench {

inline constexpr char kAttend[] = "/attention.v1.AttentionService/Attend";
inline constexpr char kStepStream[] = "/attention.v1.SessionService/StepStream";

// Attend with `payload_bytes` of q, float32 rows of one head of 64, over a single key: the answer's
// output has as many bytes. With a channel the tensors lie in its memory.
std::unique_ptr<Requests> MakeAttendRequests(std::size_t payload_bytes,
                                             const SharedChannel* shared_channel = nullptr);

// Steps of one layer of `batch_size` sessions at once, for StepStream: 32 query and 8 KV heads of
// 128 in bfloat16, so a step is 12,288 bytes in and 8,192 out. All sessions go through their layers
// and then to the next token, and are replaced while their caches are short. `max_in_flight`:
// requests that are unanswered at once, at most. Sessions are made and deleted through `channel`.
std::unique_ptr<Requests> MakeStepRequests(const std::shared_ptr<grpc::Channel>& channel,
                                           int batch_size, int max_in_flight,
                                           const SharedChannel* shared_channel = nullptr);
inline constexpr std::size_t kStepBytesIn = 12288;
inline constexpr std::size_t kStepBytesOut = 8192;

}  // namespace attention::bench
