// The times of a request: taken where rpc works on it, and on their way to the client.
#pragma once

#include <google/protobuf/timestamp.pb.h>

#include "absl/time/time.h"
#include "attention/v1/timing.pb.h"
#include "server/domain/attention_request.h"
#include "server/rpc/service_context.h"

namespace attention::server {

void EncodeDuration(absl::Duration duration, google::protobuf::Duration* wire);
void EncodeTime(absl::Time time, google::protobuf::Timestamp* wire);

// Ends the time of a request's decoding, which is returned, and begins that of its queueing.
absl::Duration BeginQueueing(const ServiceContext& services, AttentionRequest* request);

// Fills in the timing of a computed request and observes its wire times, now being the end of the
// second. `copied_bytes`: of tensors, in and out.
void EncodeTiming(const ServiceContext& services, const RequestTiming& timing,
                  absl::Duration wire_in, std::int64_t copied_bytes, v1::Timing* wire);

}  // namespace attention::server
