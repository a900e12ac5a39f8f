// The unit of scheduling: everything one call wants computed, without a trace of the wire.
//
// Ownership: a request is moved from rpc through the scheduler to the engine and handed back to its
// completion, never shared. Tensors it points to belong to the caller, who keeps them until the
// completion has run. The completion runs exactly once, on any thread, also when the work was
// dropped, cancelled, drained or failed.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "kernels/api/attention_params.h"
#include "kernels/api/projection.h"
#include "kernels/api/stored_rows.h"
#include "server/base/contain_exceptions.h"
#include "server/domain/draft_tree.h"
#include "server/domain/priority.h"

namespace attention::server {

class KvCache;  // server/cache; domain only passes it on

// The dimensions of a bias or a mask as the client gave them: [heads, q_len, kv_len]. Each may be 1
// instead.
struct BiasOrMaskShape {
  std::int64_t num_heads = 1;
  std::int64_t q_len = 0;
  std::int64_t kv_len = 0;
};

// Rows that a step appends to its layer.
struct StepAppend {
  std::int64_t num_tokens = 0;
  RowsView k;  // [num_tokens, num_kv_heads, head_dim_qk]
  RowsView v;  // [num_tokens, num_kv_heads, head_dim_v]; none if values are prefixes of the keys
  // The pieces in which the rows were received; if not empty, the rows lie there instead.
  std::vector<RowsPiece> k_pieces;
  std::vector<RowsPiece> v_pieces;
  // One of each token's rows (row_checksums.h). [num_tokens]
  std::vector<std::uint32_t> checksums;
};

// Queries of a step, and the range of the layer that they attend over.
struct StepAttend {
  AttentionTask task;  // kv_len, kv_begin, kv_pages and first_query_position are filled in later
  std::optional<std::int64_t> first_query_position;  // absent: the last query is the newest token
  std::int64_t kv_begin = 0;
  std::optional<std::int64_t> kv_end;          // absent: the layer's length after the append
  std::shared_ptr<const DraftTree> tree = {};  // to which the task refers; null: there is none
  std::optional<BiasOrMaskShape> bias_shape;
  std::optional<BiasOrMaskShape> mask_shape;
  // Bytes of column sums that the request was charged for; absent: they are not wanted.
  std::optional<std::int64_t> max_column_sum_bytes;
  // The same for attention weights.
  std::optional<std::int64_t> max_weight_bytes = {};
};

// One layer's rows of one session: to append, to attend with, or both. What depends on the
// session's length is resolved when the step runs (see step_resolution.h).
struct SessionStep {
  std::shared_ptr<KvCache> cache;
  int device = 0;  // the index of the one that holds the cache
  int layer = 0;
  std::uint64_t writer = 0;  // by whose handle; an older one than the cache's may not append
  std::optional<std::int64_t> expected_position;
  std::optional<StepAppend> append;
  std::optional<StepAttend> attend;
  absl::Duration work;  // its part of the request's; zero: as large as the others'

  std::int64_t num_tokens() const { return append ? append->num_tokens : 0; }
};

// The tokens that stay in a layer.
struct KeptTokens {
  std::optional<int> layer;          // absent: each layer
  std::optional<int> kv_head;        // absent: each KV head
  std::int64_t num_tokens = 0;       // that the layer holds
  std::vector<std::int64_t> tokens;  // of those, ascending
};

// Stored rows of a layer, to be read, or to be appended as they are.
struct RowsTransfer {
  int layer = 0;
  std::int64_t begin = 0;  // among the tokens that the layer holds
  std::int64_t num_tokens = 0;
  StoredRows rows;
  // The tokens': those that have been read, if it is not null, or that are appended.
  std::vector<std::uint32_t>* checksums = nullptr;
};

// A change of whole caches, in order with the steps of their sessions, or a transfer of rows.
struct CacheChange {
  enum class Kind { kFork, kTruncate, kReorder, kAttach, kKeep, kRead, kWrite };

  Kind kind = Kind::kTruncate;
  int device = 0;  // the index of the one that holds all of the caches
  // The one that is changed or read, or those that are reordered.
  std::vector<std::shared_ptr<KvCache>> caches;
  // By whose handle each is changed, which is refused for an older one than the cache's; the new
  // writer of the one that is attached to. A fork, which changes nothing of its source, has none.
  std::vector<std::uint64_t> writers = {};
  // Tokens of each layer that the copies get, or that stay; absent: the committed length.
  std::optional<std::int64_t> length;
  // The tokens behind the `length` of a truncation, counted from there, that stay too.
  std::vector<std::int64_t> accepted = {};
  std::vector<KeptTokens> keep = {};
  std::optional<RowsTransfer> rows = {};
  std::vector<std::shared_ptr<KvCache>> copies;  // of a fork: empty caches that get the tokens
  std::vector<std::size_t> sources;  // of a reorder: the index of the cache that each is to equal
  std::uint64_t change_id = 0;       // the same in a repetition; 0: it has none
};

// Rows that are projected before a request's attention, which reads the result, or after it.
struct RequestProjection {
  ProjectionTask task;
  // The step it belongs to: without that step's success it is not computed, and its first_position
  // is where the step appends. Absent: belongs to the stateless tasks.
  std::optional<std::size_t> step;
};

struct StepOutcome {
  absl::Status status;
  std::int64_t position = 0;  // the layer's length after the step
  bool is_replay = false;
  std::int64_t kv_len = 0;         // attended over
  std::vector<float> column_sums;  // [kv_len, num_q_heads] if wanted
  std::vector<float> weights;      // [q_len, num_q_heads, kv_len] if wanted
};

struct RequestTiming {
  absl::Duration queue;
  absl::Duration batch_formation;
  absl::Duration compute;
  int batch_size = 0;
  absl::Time computed;  // when the computation ended
};

struct AttentionResult {
  absl::Status status;             // of the request as a whole
  std::vector<StepOutcome> steps;  // one for each step; empty unless status is OK
  RequestTiming timing;
};

struct AttentionRequest {
  using Completion =
      absl::AnyInvocable<void(std::unique_ptr<AttentionRequest> request, AttentionResult result)>;

  std::string tenant;
  Priority priority = Priority::kNormal;
  absl::Time arrival;
  absl::Time deadline = absl::InfiniteFuture();
  // Set by the caller when its client has gone; read before compute begins.
  std::shared_ptr<const std::atomic<bool>> is_cancelled;

  // The work to do: stateless sequences, session steps, or blocks of attention weights.
  std::vector<AttentionTask> tasks;
  std::vector<SessionStep> steps;
  std::vector<WeightsTask> weights;
  std::vector<RequestProjection> inputs;   // before the appends and the attention
  std::vector<RequestProjection> outputs;  // after it
  std::shared_ptr<const void> projections_owner;

  // The change to make; if there is one, there is nothing else to do.
  std::optional<CacheChange> change;

  // Goes on with a request that was admitted before (the next block of its weights): neither a
  // drain nor a full queue refuses it. At most one of each admitted request is queued.
  bool is_continuation = false;

  // The least time that the device could need (RooflineSeconds): what budgets and fairness count.
  absl::Duration work;
  double flops = 0;        // of that work, for the metrics
  std::int64_t bytes = 0;  // of tensors held while queued
  Completion completion;
};

// Runs the completion with the request itself. The last thing to happen to a request. A completion
// answers also what it throws itself; what escapes it must not cost others of its batch theirs.
inline void Complete(std::unique_ptr<AttentionRequest> request, AttentionResult result) {
  AttentionRequest::Completion completion = std::move(request->completion);
  ContainExceptions([&] {
    completion(std::move(request), std::move(result));
    return absl::OkStatus();
  }).IgnoreError();
}

}  // namespace attention::server
