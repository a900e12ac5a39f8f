#include "server/rpc/tensor_call.h"

#include <new>

#include "server/base/status_macros.h"
#include "server/wire/timing_encoder.h"

namespace attention::server {

absl::Status TensorCall::Decode(
    const CallFrame& frame, AttentionRequest* request,
    absl::FunctionRef<absl::Status(ResponseAllocator& allocator)> decode) {
  const auto admit = [&](std::int64_t bytes) {
    return frame.AdmitResults(tensors_.message_bytes(), bytes);
  };
  ResponseAllocator allocator(services_.buffers, tensors_.mark(),
                              services_.limits.max_response_bytes, admit);
  try {
    ATTENTION_RETURN_IF_ERROR(decode(allocator));
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError("out of memory for the tensors of the request");
  }
  services_.metrics.input_bytes.Add(tensors_.copied_bytes());
  const absl::Time now = services_.clock.Now();
  wire_in_ = now - request->arrival;
  request->arrival = now;
  return absl::OkStatus();
}

void TensorCall::EncodeTiming(const AttentionResult& result, v1::Timing* wire) {
  const WireTimes times = {wire_in_, services_.clock.Now() - result.timing.computed};
  server::EncodeTiming(result.timing, times, tensors_.copied_bytes(), wire);
  services_.metrics.wire_in_seconds.Observe(absl::ToDoubleSeconds(times.in));
  services_.metrics.wire_out_seconds.Observe(absl::ToDoubleSeconds(times.out));
  services_.metrics.copied_bytes.Add(tensors_.copied_bytes());
}

}  // namespace attention::server
