#include "server/wire/timing_encoder.h"

namespace attention::server {

void EncodeDuration(absl::Duration duration, google::protobuf::Duration* wire) {
  const timespec time = absl::ToTimespec(duration);
  wire->set_seconds(time.tv_sec);
  wire->set_nanos(static_cast<int>(time.tv_nsec));
}

void EncodeTime(absl::Time time, google::protobuf::Timestamp* wire) {
  const timespec value = absl::ToTimespec(time);
  wire->set_seconds(value.tv_sec);
  wire->set_nanos(static_cast<int>(value.tv_nsec));
}

void EncodeTiming(const RequestTiming& timing, const WireTimes& times, std::int64_t copied_bytes,
                  v1::Timing* wire) {
  EncodeDuration(timing.queue, wire->mutable_queue());
  EncodeDuration(timing.batch_formation, wire->mutable_batch_formation());
  EncodeDuration(timing.compute, wire->mutable_compute());
  wire->set_batch_size(timing.batch_size);
  EncodeDuration(times.in, wire->mutable_wire_in());
  EncodeDuration(times.out, wire->mutable_wire_out());
  wire->set_copied_bytes(copied_bytes);
}

}  // namespace attention::server
