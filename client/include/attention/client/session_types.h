// Requests and results of the session calls: the words of attention/v1/session_service.proto as
// plain structs. A session is a set of per-layer key/value caches that lives in one server; see
// session.h for the object that drives one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "attention/client/attention.h"
#include "attention/client/tensor.h"

namespace attention::client {

// Names a session and its owner. Treat it as opaque and store it whole.
struct SessionHandle {
  std::string server_name = {};
  // Changes when the server restarts.
  std::uint64_t server_epoch = 0;
  // Unguessable.
  std::string session_id = {};
  // Grows with each Client::AttachSession; a handle from before may not write any more.
  std::uint64_t writer = 0;

  bool operator==(const SessionHandle&) const = default;
};

// The shape of one layer of a session's cache, with the limits of SessionGeometry.
struct LayerShape {
  int num_kv_heads = 1;
  int head_dim_qk = 0;
  int head_dim_v = 0;
  DType kv_dtype = DType::kFloat32;
  // The layer's window: a query sees at most so many of the newest keys up to its own position, and
  // the first sink_tokens; 0: any key. The layer keeps only what a later query can see. Steps must
  // be causal and stay within it, with a window_left of at most window_tokens - 1. What needs older
  // tokens than those that are kept fails with reason kWindowDropped.
  std::int64_t window_tokens = 0;
  std::int64_t sink_tokens = 0;  // 0 without a window
  bool value_is_key_prefix = false;

  bool operator==(const LayerShape&) const = default;
};

// The shape of a session's cache: one for all layers, or `layers`.
struct SessionGeometry {
  // 1 to 1024. Each layer has a length of its own. Answers have it with `layers`, too.
  int num_layers = 1;
  int num_kv_heads = 1;
  // 1 to 576.
  int head_dim_qk = 0;
  // 1 to 512.
  int head_dim_v = 0;
  // The cache's type: kFloat32, kFloat16, kBFloat16, kInt8 or kFloat8E4M3. Rows of another
  // dtype are rounded to nearest when appended; the last two take a byte an element and keep a
  // scale for each token and head (SessionGeometry in session_service.proto says how near they
  // are).
  DType kv_dtype = DType::kFloat32;
  // Latent attention: a value is the first head_dim_v elements of its key, at most head_dim_qk.
  // Steps give k and no v, and only keys are stored.
  bool value_is_key_prefix = false;
  // As in LayerShape.
  std::int64_t window_tokens = 0;
  std::int64_t sink_tokens = 0;
  // Where layers differ, the shape of each; the fields above are not used then.
  std::vector<LayerShape> layers = {};

  // The shape of a layer that is there, in either form.
  LayerShape layer(int index) const {
    if (!layers.empty()) return layers.at(static_cast<std::size_t>(index));
    return {.num_kv_heads = num_kv_heads,
            .head_dim_qk = head_dim_qk,
            .head_dim_v = head_dim_v,
            .kv_dtype = kv_dtype,
            .window_tokens = window_tokens,
            .sink_tokens = sink_tokens,
            .value_is_key_prefix = value_is_key_prefix};
  }
};

// The request of CreateSession.
struct SessionOptions {
  SessionGeometry geometry = {};
  // Idle time after which the session is dropped. Default and maximum are the server's.
  std::optional<absl::Duration> ttl = {};
  // Refuses now, rather than later, when the pool could not hold so many tokens.
  std::int64_t expected_tokens = 0;
  // A name of your choice, unique among the tenant's sessions on a server; at most 128 bytes of
  // UTF-8. The call returns the session that has the name already: so a program that has restarted
  // finds its session again. ALREADY_EXISTS: that session has another geometry. Empty: the SDK
  // makes one up for each call, so that retries of the call make one session.
  std::string name = {};
  // Words of your own about the session, by which ListSessions finds it: at most 16, with keys of 1
  // to 64 bytes and values of at most 128.
  std::map<std::string, std::string> labels = {};
};

enum class SessionState {
  kIdle,     // no call is in flight, the cache is on its device
  kBusy,     // a call is in flight
  kSpilled,  // idle, the cache is in the host's memory
};

struct SessionInfo {
  SessionHandle handle = {};
  std::string name = {};
  SessionGeometry geometry = {};
  // Tokens in each layer. [num_layers]
  std::vector<std::int64_t> layer_lengths = {};
  // The least of layer_lengths: what is complete.
  std::int64_t committed_length = 0;
  // Bytes of the cache pages that its steps read. Pages that forks have in common count in each.
  std::int64_t kv_bytes = 0;
  absl::Duration ttl = {};
  absl::Time create_time = {};
  absl::Time expire_time = {};
  std::map<std::string, std::string> labels = {};
  SessionState state = SessionState::kIdle;
  // Tokens that each layer holds, fewer than its length after KeepTokens. [num_layers], or empty:
  // as many as the lengths say.
  std::vector<std::int64_t> layer_tokens = {};
};

struct ForkSessionRequest {
  SessionHandle handle = {};
  // Tokens of each layer that the copies hold, at most the committed length. Default: that.
  std::optional<std::int64_t> length = {};
  // 1 to 1024.
  int num_copies = 1;
  // As SessionOptions::name, one for each copy. Empty: the SDK makes them up for each call, so that
  // retries of the call make one set of copies.
  std::vector<std::string> names = {};
  // The same for each copy as SessionOptions::ttl.
  std::optional<absl::Duration> ttl = {};
};

struct TruncateSessionRequest {
  SessionHandle handle = {};
  // Tokens that stay in every layer, at most the committed length.
  std::int64_t length = 0;
  // Tokens behind those that stay too and move together, counted from `length` in ascending order:
  // the accepted ones of drafts.
  std::vector<int> accepted = {};
  // As ReorderSessionsRequest::reorder_id.
  std::uint64_t change_id = 0;
};

// The tokens that stay in a layer.
struct KeptTokens {
  std::optional<int> layer = {};    // absent: in each layer, of which all hold as many tokens
  std::optional<int> kv_head = {};  // absent: of each KV head; else there is an entry for each
  // That the layer holds, to be sure of which tokens these are. Absent in Session::Keep: as many as
  // the session has seen.
  std::optional<std::int64_t> num_tokens = {};
  // Those that stay, by their place among the tokens that the layer holds, ascending.
  std::vector<std::int64_t> tokens = {};
};

struct KeepTokensRequest {
  SessionHandle handle = {};
  std::vector<KeptTokens> keep = {};
  // As ReorderSessionsRequest::reorder_id.
  std::uint64_t change_id = 0;
};

struct GetKeysValuesRequest {
  SessionHandle handle = {};
  int layer = 0;
  // Places among the tokens that the layer holds. Default: all.
  std::int64_t begin = 0;
  std::optional<std::int64_t> end = {};
};

// Rows as attention reads them: of the cache's type, or of float32 where that has row scales.
struct KeysValues {
  Tensor k = {};  // [num_tokens, num_kv_heads, head_dim_qk]
  Tensor v = {};  // [num_tokens, num_kv_heads, head_dim_v]; absent: prefixes of the keys
};

struct ExportSessionRequest {
  SessionHandle handle = {};
  // Tokens of each layer that the archive holds, at most the committed length. Default: that.
  std::optional<std::int64_t> length = {};
};

struct ImportSessionRequest {
  // As in SessionOptions, but no session may have the name already. Default: none.
  std::string name = {};
  std::optional<absl::Duration> ttl = {};
  std::map<std::string, std::string> labels = {};
  // The target to which the session goes: an index into ClientOptions::targets. Default: whose turn
  // it is.
  std::optional<int> target = {};
};

struct ReorderSessionsRequest {
  // 1 to 1024 of one server, one device and one geometry, as forks of one session are.
  std::vector<SessionHandle> handles = {};
  // One for each session: the index of the one whose tokens it gets.
  std::vector<int> sources = {};
  // Tells repetitions of a call, unlike that of the reorder before. 0: the SDK makes one up for
  // each call, so that its retries reorder once.
  std::uint64_t reorder_id = 0;
};

struct ListSessionsRequest {
  // 0: the server's default, 100. At most 1000.
  int page_size = 0;
  // Empty for the first page, then the next_page_token of the page before. With several targets the
  // pages of one follow those of another.
  std::string page_token = {};
  // Only the session of this name, only those that have all of these labels, only those in this
  // state. Default: all.
  std::string name = {};
  std::map<std::string, std::string> labels = {};
  std::optional<SessionState> state = {};
};

struct ListSessionsResult {
  std::vector<SessionInfo> sessions = {};
  // Empty on the last page. A page may hold no session and still not be the last.
  std::string next_page_token = {};
};

// One layer's rows of one session. With k and v the rows are appended first, with q the step then
// attends; at least one of the two is given.
struct SessionStep {
  SessionHandle handle = {};
  // 0 to num_layers - 1.
  int layer = 0;
  // The layer's length before this step, in tokens. Required with k and v, and then compared: a gap
  // is POSITION_MISMATCH, and so are other rows where the layer has some; the same rows, applied
  // already, only attend again. Without k and v the length to attend over; absent: all of it.
  std::optional<std::int64_t> expected_position = {};
  // [num_tokens, num_kv_heads, head_dim_qk] and [num_tokens, num_kv_heads, head_dim_v]. Both or
  // neither; k alone where values are prefixes of their keys.
  TensorView k = {};
  TensorView v = {};
  // [q_len, num_q_heads, head_dim_qk]. Absent: append only.
  TensorView q = {};
  // Default: the length after the append minus q_len.
  std::optional<std::int64_t> first_query_position = {};
  AttentionConfig config = {};
  // As in AttendRequest with one sequence; kv is kv_end or the length attended over. Optional.
  TensorView bias = {};
  TensorView mask = {};
  // Attend over [kv_begin, kv_end) of the cache only: a partial result, to be merged by its lse
  // (merge.h). Default: all.
  std::int64_t kv_begin = 0;
  std::optional<std::int64_t> kv_end = {};
  ReturnOptions returns = {};
  // The rows are drafts of a tree, as many of q as of k: the row that each of them follows, of a
  // lower index, or -1 where it follows the tokens before the step. A row sees those tokens, its
  // ancestors and itself. Empty: there is no tree.
  std::vector<int> parents = {};
};

struct StepRequest {
  // At least one, all of sessions that one server owns; several of one session and layer are
  // applied in order.
  std::vector<SessionStep> steps = {};
};

// The server's answer to one step.
struct StepAnswer {
  // [q_len, num_q_heads, head_dim_v] in q's dtype; absent when the step only appends or failed.
  Tensor output = {};
  // float32 [q_len, num_q_heads]. Absent unless asked for.
  Tensor lse = {};
  // float32 [kv_len, num_q_heads]. Absent unless asked for.
  Tensor column_sums = {};
  // float32 [q_len, num_q_heads, kv_len]. Absent unless asked for.
  Tensor weights = {};
  // The layer's length after the step, in tokens, as the server has it.
  std::int64_t position = 0;
  // The rows had been appended by an earlier attempt.
  bool is_replay = false;
};

struct SessionStepResult : StepAnswer {
  // The outcome of this step alone; the steps of a request fail independently.
  absl::Status status = {};
};

struct StepResult {
  // One for each step, in order.
  std::vector<SessionStepResult> results = {};
  Timing timing = {};
};

}  // namespace attention::client
