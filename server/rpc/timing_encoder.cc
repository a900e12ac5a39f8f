#include "server/rpc/timing_encoder.h"

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

absl::Duration BeginQueueing(const ServiceContext& services, AttentionRequest* request) {
  const absl::Time now = services.clock.Now();
  const absl::Duration wire_in = now - request->arrival;
  request->arrival = now;
  return wire_in;
}

void EncodeTiming(const ServiceContext& services, const RequestTiming& timing,
                  absl::Duration wire_in, std::int64_t copied_bytes, v1::Timing* wire) {
  const absl::Duration wire_out = services.clock.Now() - timing.computed;
  EncodeDuration(timing.queue, wire->mutable_queue());
  EncodeDuration(timing.batch_formation, wire->mutable_batch_formation());
  EncodeDuration(timing.compute, wire->mutable_compute());
  wire->set_batch_size(timing.batch_size);
  EncodeDuration(wire_in, wire->mutable_wire_in());
  EncodeDuration(wire_out, wire->mutable_wire_out());
  wire->set_copied_bytes(copied_bytes);
  services.metrics.wire_in_seconds.Observe(absl::ToDoubleSeconds(wire_in));
  services.metrics.wire_out_seconds.Observe(absl::ToDoubleSeconds(wire_out));
  services.metrics.copied_bytes.Add(copied_bytes);
}

}  // namespace attention::server
