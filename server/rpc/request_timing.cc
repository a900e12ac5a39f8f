#include "server/rpc/request_timing.h"

#include "server/wire/timing_encoder.h"

namespace attention::server {

absl::Duration BeginQueueing(const ServiceContext& services, AttentionRequest* request) {
  const absl::Time now = services.clock.Now();
  const absl::Duration wire_in = now - request->arrival;
  request->arrival = now;
  return wire_in;
}

void FinishTiming(const ServiceContext& services, const RequestTiming& timing,
                  absl::Duration wire_in, std::int64_t copied_bytes, v1::Timing* wire) {
  const WireTimes times = {wire_in, services.clock.Now() - timing.computed};
  EncodeTiming(timing, times, copied_bytes, wire);
  services.metrics.wire_in_seconds.Observe(absl::ToDoubleSeconds(times.in));
  services.metrics.wire_out_seconds.Observe(absl::ToDoubleSeconds(times.out));
  services.metrics.copied_bytes.Add(copied_bytes);
}

}  // namespace attention::server
