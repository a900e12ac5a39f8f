// ForwardRequest to the graph of a Forward (layer/forward_graph.h), whose output lands in the
// tensor of a ForwardResponse.
//
// Queries, keys, values and attention's output are float32 in buffers of the pool, which the
// queue's bound of bytes counts with the request's tensors.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "attention/v1/layer_service.pb.h"
#include "server/domain/step_target.h"
#include "server/layer/forward_graph.h"
#include "server/layer/layer_table.h"
#include "server/wire/request_tensors.h"
#include "server/wire/response_tensors.h"

namespace attention::server {

struct DecodedForward {
  ForwardGraph graph;
  ResponseTensor output;
  std::int64_t num_rows = 0;
  std::int64_t result_bytes = 0;  // of the output, and of what is between the projections

  // The buffers that the above points into, beside the tensors and the layer.
  std::vector<PooledBuffer> buffers;
  ResultLedger::Charge charge;  // for them
  // Rows of the output that stay or become zero when it is computed: [begin, end).
  std::vector<std::pair<std::int64_t, std::int64_t>> hidden_rows;
};

// Checks the request, places its tensors and gets memory for the rest. `targets` are those of
// request.sessions. INVALID_ARGUMENT names the field. Throws std::bad_alloc when memory is out.
absl::StatusOr<DecodedForward> DecodeForward(const v1::ForwardRequest& request, const Layer& layer,
                                             const std::vector<StepTarget>& targets,
                                             RequestTensors& tensors, ResponseAllocator& allocator);

}  // namespace attention::server
