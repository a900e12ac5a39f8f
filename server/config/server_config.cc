#include "server/config/server_config.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>
#include <sstream>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "server/base/version.h"
#include "server/config/auth_flags.h"
#include "server/config/environment.h"
#include "server/config/flag_checks.h"
#include "server/config/flag_set.h"
#include "server/config/toml_file.h"

namespace attention::server {
namespace {

void AddListeners(FlagSet& flags, ServerConfig& config) {
  flags.AddList("--listen", absl::StrJoin(config.listen, ","),
                "Addresses for gRPC: host:port or unix:path, each with ?key=value settings; port 0 "
                "picks one",
                ListenCheck(), [&config](const std::string& text) { config.listen = Split(text); });
  flags.Add("--admin-listen", config.admin_listen,
            "host:port for /metrics, /healthz and /readyz; empty: none", AdminListenCheck());
  flags.Add("--shared-memory-listen", config.shared_memory_listen,
            "unix:path where clients on this host get shared memory; empty: not offered",
            SharedMemoryListenCheck());
}

void AddSharedMemoryLimits(FlagSet& flags, ServerConfig& config) {
  flags.AddBytes("--max-shared-bytes", config.max_shared_bytes,
                 "Shared memory of all clients; 0: an eighth of memory, at most 4GiB");
  flags.AddBytes("--max-shared-bytes-per-user", config.max_shared_bytes_per_user,
                 "The same of one user of the system; 0: half of that of all");
  flags.AddBytes("--max-shared-bytes-per-connection", config.max_shared_bytes_per_connection,
                 "The same of one client; 0: a quarter of that of all");
  flags.Add("--max-shared-regions", config.max_shared_regions, "Regions of shared memory of all",
            CLI::Range(std::int64_t{1}, std::int64_t{32768}));
  flags.Add("--max-shared-regions-per-connection", config.max_shared_regions_per_connection,
            "The same of one client", AtLeast(1));
  flags.Add("--max-shared-connections", config.max_shared_connections,
            "Clients with shared memory; more wait", CLI::Range(1, 65536));
  flags.Add("--max-shared-connections-per-user", config.max_shared_connections_per_user,
            "The same of one user of the system; more are refused", CLI::Range(1, 65536));
}

void AddConnections(FlagSet& flags, ServerConfig& config) {
  flags.Add("--port-file", config.port_file,
            "Write the addresses, as JSON, to this file when ready");
  flags.Add(
      "--max-connections", config.max_connections,
      "Connections of all listeners; more are closed at once; 0: what the limit of open files "
      "allows, at most 10000",
      CLI::Range(0, 1000000));
  flags.Add(
      "--max-connections-per-peer", config.max_connections_per_peer,
      "Connections of one address, or of one user at unix sockets; 0: half of max-connections",
      CLI::Range(0, 1000000));
}

void AddCalls(FlagSet& flags, ServerConfig& config) {
  flags.AddBytes("--max-message-bytes", config.max_message_bytes,
                 "Largest request message; 0: half of max-receiving-bytes, at most 1 GiB",
                 MessageSizeCheck());
  flags.AddBytes("--max-response-bytes", config.max_response_bytes,
                 "All results of one request, and what is between a layer's projections; 0: as "
                 "max-message-bytes");
  flags.AddBytes(
      "--max-result-bytes", config.max_result_bytes,
      "Results that are computed or not yet read; 0: a tenth of the memory, at most 2 GiB");
  flags.AddBytes(
      "--max-receiving-bytes", config.max_receiving_bytes,
      "Bytes of requests that have not wholly come; beyond, calls of the connection with the "
      "most are ended; 0: an eighth of the memory, at most 2 GiB");
  flags.Add("--max-calls", config.max_calls,
            "Calls that are open at a time, streams included; 0: one for each 64 KiB of "
            "max-receiving-bytes",
            CLI::NonNegativeNumber);
  flags.Add("--max-stream-requests", config.max_stream_requests,
            "Unanswered requests of one stream before it is no longer read", CLI::Range(1, 65536));
  flags.AddBytes(
      "--max-stream-bytes", config.max_stream_bytes,
      "Bytes of those, and of answers that the client has not read; one request of any size "
      "is read",
      ByteSizeCheck(1));
  flags.Add("--completion-threads", config.completion_threads,
            "Threads that receive and answer calls with tensors; 0: one for each four cores",
            CLI::Range(0, 256));
}

void AddLifecycle(FlagSet& flags, ServerConfig& config) {
  flags.AddDuration(
      "--keepalive-interval", config.keepalive_interval,
      "Silence of a connection until its client is asked whether it is there; one that "
      "does not answer for a third as long again has gone, and its streams end");
  flags.AddDuration(
      "--drain-delay", config.drain_delay,
      "After SIGTERM, how long calls are still taken while the server says that it is "
      "not ready",
      absl::ZeroDuration());
  flags.AddDuration("--drain-timeout", config.drain_timeout,
                    "After SIGTERM, how long calls in flight may take");
  flags.AddDuration(
      "--device-recovery-timeout", config.device_recovery_timeout,
      "How long no device may be usable after failures before the server ends, so that "
      "it is started again");
}

void AddCompute(FlagSet& flags, ServerConfig& config) {
  flags.Add("--server-name", config.server_name, "Name of this server in session handles");
  flags.Add("--backend", config.backend, "Kernels to use: cpu, cuda, or reference (float64, slow)",
            CLI::IsMember({"cpu", "cuda", "reference"}));
  flags.AddList(
      "--cuda-devices", "",
      "With --backend cuda, the ordinals of the GPUs, 0,2,...; empty: all that can be used",
      OrdinalsCheck(),
      [&config](const std::string& text) { ParseOrdinals(text, &config.cuda_devices); });
  flags.Add("--workers", config.workers,
            "Workers, each with threads, KV pages and a queue of its own; 0: one for each NUMA "
            "node, or for each GPU",
            CLI::Range(0, 256));
  flags.Add("--threads", config.threads, "Compute threads of all workers; 0: one a core",
            CLI::Range(0, 4096));
  flags.Add(
      "--pin-threads", config.pin_threads,
      "Keep each compute thread on a core: yes, no, or auto (where there are several workers)",
      CLI::IsMember({"auto", "yes", "no"}));
  flags.AddBytes("--kv-capacity-bytes", config.kv_capacity_bytes,
                 "Memory for KV pages; 0: a quarter of what the process may use");
  flags.Add("--kv-page-size", config.kv_page_size, "Tokens of a KV page", PageSizeCheck());
  flags.AddBytes(
      "--kv-spill-bytes", config.kv_spill_bytes,
      "Host memory for the KV pages of idle sessions while a device has none left; 0: none");
  flags.AddDuration("--kv-spill-idle", config.kv_spill_idle,
                    "How long a session must have been idle for its pages to be moved there");
}

void AddLayers(FlagSet& flags, ServerConfig& config) {
  flags.AddBytes("--layer-capacity-bytes", config.layer_capacity_bytes,
                 "Memory for layers' weights; 0: a quarter of what the process may use");
  flags.Add("--preload-layers", config.preload_layers,
            "JSON file of layers to have from the start, from .safetensors files");
  flags.Add("--max-layers", config.max_layers, "Layers of all tenants", AtLeast(0));
  flags.Add("--max-layers-per-tenant", config.max_layers_per_tenant, "Layers of one tenant",
            AtLeast(0));
  flags.Add("--max-pending-layers", config.max_pending_layers,
            "Layers that are being uploaded or converted", CLI::Range(1, 65536));
  flags.Add("--max-pending-layers-per-tenant", config.max_pending_layers_per_tenant,
            "The same of one tenant", CLI::Range(1, 65536));
  flags.AddDuration("--upload-stall-timeout", config.upload_stall_timeout,
                    "How long a layer's upload, or the connection of a request that has not wholly "
                    "come, may bring hardly anything before the call is ended");
}

void AddQueue(FlagSet& flags, ServerConfig& config) {
  flags.Add("--max-queued-requests", config.max_queued_requests, "Requests that may wait",
            CLI::Range(std::int64_t{1}, std::int64_t{1} << 30));
  flags.AddBytes("--max-queued-bytes", config.max_queued_bytes,
                 "Tensor bytes that may wait; 0: an eighth of the memory, at most 2 GiB");
  flags.Add("--max-batch-requests", config.max_batch_requests,
            "Requests of one batch; 1: no batching",
            CLI::Range(std::int64_t{1}, std::int64_t{65536}));
  flags.AddDuration(
      "--max-batch-work", config.max_batch_work,
      "Estimated computing time of one batch; a longer request runs alone, in slices");
  flags.AddDuration("--max-contended-batch-work", config.max_contended_batch_work,
                    "The same of a batch while several tenants have work");
  flags.AddDuration(
      "--max-inline-work", config.max_inline_work,
      "Estimated computing time up to which an idle server computes on the thread that "
      "received the request");
  flags.Add("--long-work-share", config.long_work_share,
            "Of a tenant's computing time, what its long requests get while it has short ones, too",
            CLI::Range(0.01, 0.99));
  flags.Add("--tenant-limits", config.tenant_limits,
            "TOML file of what each tenant may hold and do, read again on SIGHUP");
  flags.Add("--max-active-tenants", config.max_active_tenants,
            "Tenants without limits of their own that have a turn of their own; more share one",
            CLI::Range(std::int64_t{0}, std::int64_t{65536}));
}

void AddSessions(FlagSet& flags, ServerConfig& config) {
  flags.Add("--max-sessions", config.max_sessions, "Sessions of all tenants", AtLeast(0));
  flags.Add("--max-sessions-per-tenant", config.max_sessions_per_tenant,
            "Sessions of a tenant whose limits say nothing else; 0: nine tenths of max-sessions",
            AtLeast(0));
  flags.AddDuration("--session-ttl", config.session_ttl,
                    "Idle time after which a session is dropped");
  flags.AddDuration("--max-session-ttl", config.max_session_ttl,
                    "Longest TTL a client may ask for");
}

void AddLogging(FlagSet& flags, ServerConfig& config) {
  flags.Add("--log-level", config.log_level, "Least severe level that is logged",
            CLI::IsMember({"trace", "debug", "info", "warn", "error"}));
  flags.Add("--log-format", config.log_format, "Log as text or JSON lines",
            CLI::IsMember({"text", "json"}));
}

void AddFlags(CLI::App& app, const std::shared_ptr<TomlFile>& file, ServerConfig& config) {
  app.config_formatter(file);
  app.allow_config_extras(CLI::config_extras_mode::error);
  app.set_config("--config", "", "Read keys from this TOML file")->envname("ATTENTION_CONFIG");
  FlagSet flags(app);
  for (const auto add : {AddListeners, AddAuth, AddSharedMemoryLimits, AddConnections, AddCalls,
                         AddLifecycle, AddCompute, AddLayers, AddQueue, AddSessions, AddLogging}) {
    add(flags, config);
  }
  app.add_flag("--print-config")
      ->description("Print the effective configuration and exit")
      ->configurable(false);
  app.add_option("--new-token", "Print a new bearer token and its line for auth-tokens, and exit")
      ->configurable(false)
      ->check(NewTokenCheck());
  app.set_version_flag("--version",
                       absl::StrCat("attention-server ", kVersion, " (", kCommit, ")"));
}

// An error's text, with the line of the file where the value comes from.
std::string WithPlace(std::string text, const TomlFile& file) {
  const std::string flag = text.substr(0, text.find(':'));
  if (!absl::StartsWith(flag, "--")) return text;
  const std::string place = file.PlaceOf(flag.substr(2));
  text.insert(text.find('\n') == std::string::npos ? text.size() : text.find('\n'), place);
  return text;
}

}  // namespace

ParsedCommandLine ParseCommandLine(int argc, const char* const* argv) {
  ParsedCommandLine parsed;
  CLI::App app{"attention-server: attention as a remote compute service"};
  const auto file = std::make_shared<TomlFile>(app);
  AddFlags(app, file, parsed.config);
  if (std::string error = CheckEnvironment(app, &parsed.warnings); !error.empty()) {
    parsed.is_exit = true;
    parsed.exit_code = 2;
    parsed.text = error + "\n";
    return parsed;
  }
  try {
    std::vector<std::string> arguments = WithEnvironment(app, {argv + 1, argv + argc});
    std::reverse(arguments.begin(), arguments.end());  // CLI11 takes them from the back
    app.parse(arguments);
  } catch (const CLI::ParseError& error) {
    std::ostringstream out;
    parsed.is_exit = true;
    parsed.exit_code = app.exit(error, out, out) == 0 ? 0 : 2;
    parsed.text = WithPlace(out.str(), *file);
    return parsed;
  }
  if (std::string error = CheckAuth(parsed.config); !error.empty()) {
    parsed.is_exit = true;
    parsed.exit_code = 2;
    parsed.text = error + "\n";
    return parsed;
  }
  if (app.count("--new-token") > 0) {
    parsed.is_exit = true;
    parsed.text = NewTokenText(app["--new-token"]->as<std::string>());
  } else if (app.count("--print-config") > 0) {
    parsed.is_exit = true;
    parsed.text = app.config_to_str(/*default_also=*/true, /*write_description=*/true);
  }
  return parsed;
}

}  // namespace attention::server
