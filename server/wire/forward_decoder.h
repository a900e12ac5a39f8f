// ForwardRequest to projections, attention tasks or steps, and the projections after them.
//
// Queries, keys, values and attention's output are float32 in buffers of the pool, which the
// queue's bound of bytes counts with the request's tensors.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "attention/v1/layer_service.pb.h"
#include "server/domain/attention_request.h"
#include "server/layer/layer_table.h"
#include "server/session/session_table.h"
#include "server/wire/request_tensors.h"
#include "server/wire/response_tensors.h"

namespace attention::server {

struct DecodedForward {
  std::vector<AttentionTask> tasks;  // without sessions: one a sequence
  std::vector<SessionStep> steps;    // with sessions: one a sequence
  std::vector<RequestProjection> inputs;
  std::vector<RequestProjection> outputs;
  ResponseTensor output;
  WorkEstimate work;  // with the sessions' present lengths
  std::int64_t num_rows = 0;
  std::int64_t result_bytes = 0;  // of the output, and of what is between the projections

  // What the above points into, beside the tensors and the layer.
  std::vector<PooledBuffer> buffers;
  ResultLedger::Charge charge;  // for them
  // Rows of the output that stay or become zero when it is computed: [begin, end).
  std::vector<std::pair<std::int64_t, std::int64_t>> hidden_rows;
};

// Checks the request, places its tensors and gets memory for the rest. `leases` are those of
// request.sessions. INVALID_ARGUMENT names the field. Throws std::bad_alloc when memory is out.
absl::StatusOr<DecodedForward> DecodeForward(const v1::ForwardRequest& request,
                                             const std::shared_ptr<const Layer>& layer,
                                             const std::vector<SessionLease>& leases,
                                             RequestTensors& tensors, ResponseAllocator& allocator);

}  // namespace attention::server
