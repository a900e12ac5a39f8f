// A layer's Forward as the engine computes it: projections into queries, keys and values, attention
// over them or steps of sessions, and projections out of attention's output.
//
// The values between the projections are float32, in memory of the caller's.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "kernels/api/work_estimate.h"
#include "server/domain/attention_request.h"
#include "server/domain/step_target.h"
#include "server/layer/layer_table.h"
#include "server/layer/ragged_rows.h"

namespace attention::server {

// The keys of the call that count, in rows of the keys' tensor. Strides are in elements, and 0
// along axes of 1.
struct KeyMask {
  const std::uint8_t* data = nullptr;  // null: all do
  std::int64_t sequence_stride = 0;    // of dense rows
  std::int64_t row_stride = 0;
};

// The cache in which a sequence's keys and values are.
struct ForwardSession {
  StepTarget target;
  int layer = 0;
  std::optional<std::int64_t> expected_position;
};

struct ForwardInput {
  std::int64_t num_sequences = 0;
  RaggedRows x;        // absent: the context is appended and nothing attends
  RaggedRows context;  // of cross-attention; absent: the sessions have it
  KeyMask mask;
  std::vector<std::int64_t> first_positions;  // for rotary embedding; empty: 0
  std::vector<ForwardSession> sessions;       // one a sequence, or none

  const RaggedRows& KvRows(const LayerSpec& spec) const { return spec.is_cross() ? context : x; }
};

// Rows between the projections, `columns` floats each.
struct BufferShape {
  std::int64_t rows = 0;
  std::int64_t columns = 0;
};
struct ForwardShapes {
  BufferShape input;     // queries, and of self-attention keys and values beside them
  BufferShape kv;        // of cross-attention, keys and values
  BufferShape attended;  // attention's output
};
ForwardShapes ShapesOf(const Layer& layer, const ForwardInput& input);

// The memory of the shapes above; the output has x's type and its rows, dense or packed.
struct ForwardMemory {
  float* input = nullptr;
  float* kv = nullptr;
  float* attended = nullptr;
  char* output = nullptr;
};

struct ForwardGraph {
  std::vector<AttentionTask> tasks;  // without sessions: one a sequence
  std::vector<SessionStep> steps;    // with sessions: one a sequence
  std::vector<RequestProjection> inputs;
  std::vector<RequestProjection> outputs;
  WorkEstimate work;  // with the sessions' present lengths
};

// The input fits the layer. All that is pointed to must outlive the graph.
ForwardGraph BuildForwardGraph(const Layer& layer, const ForwardInput& input,
                               const ForwardMemory& memory);

// Rows of x that self-attention's mask hides, as [begin, end): they have no output.
std::vector<std::pair<std::int64_t, std::int64_t>> HiddenRows(const ForwardInput& input);

}  // namespace attention::server
