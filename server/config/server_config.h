// Everything that can be set, checked once and then immutable.
//
// Each key is a flag (--kv-page-size), a line of the file (kv-page-size = 64, TOML) and an
// environment variable (ATTENTION_KV_PAGE_SIZE). Flags win over the environment, which wins over
// the file.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/auth/authenticator.h"

namespace attention::server {

struct ServerConfig {
  std::vector<std::string> listen = {"127.0.0.1:7070"};
  std::string admin_listen = "127.0.0.1:7071";  // empty: none
  std::string port_file;
  std::int64_t max_connections = 0;           // of all listeners; 0: what the descriptors allow
  std::int64_t max_connections_per_peer = 0;  // 0: half of max_connections

  AuthFiles auth;  // none: whoever calls names the tenant
  bool trust_tenant_names_from_network = false;

  std::string shared_memory_listen;            // "unix:path"; empty: shared memory is not offered
  std::int64_t max_shared_bytes = 0;           // 0: a share of the machine's memory
  std::int64_t max_shared_bytes_per_user = 0;  // 0: half of that
  std::int64_t max_shared_bytes_per_connection = 0;  // 0: a quarter of that
  std::int64_t max_shared_regions = 4096;
  std::int64_t max_shared_regions_per_connection = 64;
  int max_shared_connections = 256;
  int max_shared_connections_per_user = 128;

  std::string server_name = "server-0";
  std::string backend = "cpu";
  std::vector<int> cuda_devices;     // ordinals; empty: all that can be used
  int workers = 0;                   // 0: one for each NUMA node, or GPU
  int threads = 0;                   // of all workers together; 0: one a core
  std::string pin_threads = "auto";  // yes, no, or auto: where there are several workers

  std::int64_t kv_capacity_bytes = 0;  // 0: a share of the memory
  std::int64_t kv_page_size = 64;      // tokens
  std::int64_t kv_spill_bytes = 0;     // of the host's memory, for idle sessions; 0: none
  absl::Duration kv_spill_idle = absl::Seconds(1);

  std::int64_t layer_capacity_bytes = 0;  // 0: a share of the memory
  std::int64_t max_layers = 100'000;
  std::int64_t max_layers_per_tenant = 10000;
  int max_pending_layers = 128;  // being uploaded or converted
  int max_pending_layers_per_tenant = 32;
  absl::Duration upload_stall_timeout = absl::Seconds(30);
  std::string preload_layers;  // a JSON file; empty: none

  std::int64_t max_message_bytes = 0;    // 0: half of those being received, at most 1 GiB
  std::int64_t max_response_bytes = 0;   // 0: as max_message_bytes
  std::int64_t max_result_bytes = 0;     // 0: a share of the memory
  std::int64_t max_receiving_bytes = 0;  // 0: a share of the memory
  std::int64_t max_calls = 0;            // 0: one for each 64 KiB of those
  std::int64_t max_queued_requests = 1024;
  std::int64_t max_queued_bytes = 0;  // 0: a share of the memory
  std::int64_t max_batch_requests = 256;
  absl::Duration max_batch_work = absl::Milliseconds(5);
  absl::Duration max_contended_batch_work = absl::Milliseconds(1);
  absl::Duration max_inline_work = absl::Microseconds(200);
  double long_work_share = 0.25;
  std::string tenant_limits;             // a TOML file; empty: the defaults for everybody
  std::int64_t max_active_tenants = 64;  // of those that it does not list; more share one turn
  int max_stream_requests = 64;
  std::int64_t max_stream_bytes = std::int64_t{64} << 20;
  int completion_threads = 0;  // 0: one for each four cores
  absl::Duration keepalive_interval = absl::Minutes(1);

  std::int64_t max_sessions = 10000;
  std::int64_t max_sessions_per_tenant = 0;  // 0: nine tenths of max_sessions
  absl::Duration session_ttl = absl::Minutes(15);
  absl::Duration max_session_ttl = absl::Hours(24);
  absl::Duration drain_delay;  // from "not ready" until calls are refused
  absl::Duration drain_timeout = absl::Seconds(30);
  absl::Duration device_recovery_timeout = absl::Seconds(30);

  std::string log_level = "info";
  std::string log_format = "text";
};

struct ParsedCommandLine {
  ServerConfig config;
  // Print this and leave with exit_code: --help, --version, --print-config, or a wrong flag.
  bool is_exit = false;
  int exit_code = 0;
  std::string text;
  // To be logged once the server starts.
  std::vector<std::string> warnings;
};

// Reads command line, environment and file; checks every value.
ParsedCommandLine ParseCommandLine(int argc, const char* const* argv);

}  // namespace attention::server
