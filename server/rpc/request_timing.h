// The times of a request that rpc takes: of its decoding, and of encoding its results.
#pragma once

#include <cstdint>

#include "absl/time/time.h"
#include "attention/v1/timing.pb.h"
#include "server/domain/attention_request.h"
#include "server/rpc/service_context.h"

namespace attention::server {

// Ends the time of a request's decoding, which is returned, and begins that of its queueing.
absl::Duration BeginQueueing(const ServiceContext& services, AttentionRequest* request);

// Encodes the timing of a computed request and observes its wire times, now being the end of the
// second. `copied_bytes`: of tensors, in and out.
void FinishTiming(const ServiceContext& services, const RequestTiming& timing,
                  absl::Duration wire_in, std::int64_t copied_bytes, v1::Timing* wire);

}  // namespace attention::server
