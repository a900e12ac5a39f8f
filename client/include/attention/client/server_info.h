// A server's description of itself and of what it would do: the words of
// attention/v1/server_service.proto.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "attention/client/attention.h"
#include "attention/client/tensor.h"

namespace attention::client {

struct Device {
  // "cpu" or "cuda".
  std::string backend = {};
  // Model name of the processor.
  std::string name = {};
  // Instruction set that the kernels were dispatched to.
  std::string isa = {};
  int num_threads = 0;
  bool is_used = false;
  // Why not, when it is not.
  std::string unused_reason = {};
};

// Bounds of the server's configuration.
struct Limits {
  std::int64_t max_message_bytes = 0;
  std::int64_t max_queued_requests = 0;
  std::int64_t max_queued_bytes = 0;
  std::int64_t max_sessions = 0;
  std::int64_t max_sessions_per_tenant = 0;
  std::int64_t max_session_ttl_seconds = 0;
  // The contract's; devices may support less (Explain).
  int max_head_dim_qk = 0;
  int max_head_dim_v = 0;
  std::int64_t kv_capacity_bytes = 0;
  // For the weights of layers.
  std::int64_t layer_capacity_bytes = 0;
  std::int64_t max_layers_per_tenant = 0;
  // For requests that have not wholly come.
  std::int64_t max_receiving_bytes = 0;
  // Calls that are open at a time, streams included.
  std::int64_t max_calls = 0;
  // All results of one request together.
  std::int64_t max_response_bytes = 0;
};

// Room that is free, and room that the client's tenant uses.
struct Capacity {
  std::int64_t kv_free_bytes = 0;
  std::int64_t num_sessions = 0;
  // That wait for a worker.
  std::int64_t queued_requests = 0;
  std::int64_t num_layers = 0;
  // Weights in memory that the tenant has uploaded.
  std::int64_t layer_bytes = 0;
};

struct ServerInfo {
  std::string version = {};
  // The build's commit, or "unknown".
  std::string commit = {};
  std::string server_name = {};
  std::uint64_t server_epoch = 0;
  std::vector<Device> devices = {};
  Limits limits = {};
  Capacity capacity = {};
  // Path of the socket where clients on the server's host share memory; empty: not offered.
  std::string shared_memory_socket = {};
};

// A computation to be explained, one sequence.
struct ExplainRequest {
  int num_q_heads = 0;
  int num_kv_heads = 0;
  int head_dim_qk = 0;
  int head_dim_v = 0;
  DType dtype = DType::kFloat32;
  // Default: dtype.
  std::optional<DType> kv_dtype = {};
  std::int64_t q_len = 0;
  std::int64_t kv_len = 0;
  // Default: kv_len - q_len.
  std::optional<std::int64_t> first_query_position = {};
  AttentionConfig config = {};
  // As in SessionGeometry.
  bool value_is_key_prefix = false;
};

struct ExplainResult {
  bool is_supported = false;
  // Why not, when it is not.
  std::string unsupported_reason = {};
  std::string backend = {};
  std::string kernel = {};
  // 2 * (head_dim_qk + head_dim_v) for each visible (query, key) pair and query head.
  double flops = 0;
  // Visible keys and values read once, in the cache's dtype.
  double kv_bytes = 0;
  // q and output.
  double io_bytes = 0;
  // The least time this device could need, from its own measured ceilings.
  double roofline_seconds = 0;
};

}  // namespace attention::client
