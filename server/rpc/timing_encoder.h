// RequestTiming to its wire form.
#pragma once

#include "attention/v1/timing.pb.h"
#include "server/domain/attention_request.h"

namespace attention::server {

inline void EncodeDuration(absl::Duration duration, google::protobuf::Duration* wire) {
  const timespec time = absl::ToTimespec(duration);
  wire->set_seconds(time.tv_sec);
  wire->set_nanos(static_cast<int>(time.tv_nsec));
}

inline void EncodeTiming(const RequestTiming& timing, v1::Timing* wire) {
  EncodeDuration(timing.queue, wire->mutable_queue());
  EncodeDuration(timing.batch_formation, wire->mutable_batch_formation());
  EncodeDuration(timing.compute, wire->mutable_compute());
  wire->set_batch_size(timing.batch_size);
}

}  // namespace attention::server
