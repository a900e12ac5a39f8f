// Times and durations on their way to the client.
#pragma once

#include <google/protobuf/timestamp.pb.h>

#include "absl/time/time.h"
#include "attention/v1/timing.pb.h"
#include "server/domain/attention_request.h"

namespace attention::server {

void EncodeDuration(absl::Duration duration, google::protobuf::Duration* wire);
void EncodeTime(absl::Time time, google::protobuf::Timestamp* wire);

// The time that a request took to be decoded, and its results to be encoded.
struct WireTimes {
  absl::Duration in;
  absl::Duration out;
};

// The timing of a computed request. `copied_bytes`: of tensors, in and out.
void EncodeTiming(const RequestTiming& timing, const WireTimes& times, std::int64_t copied_bytes,
                  v1::Timing* wire);

}  // namespace attention::server
