#include "server/config/server_config.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <memory>
#include <sstream>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "server/base/version.h"
#include "server/config/byte_size.h"
#include "server/config/nearest_name.h"
#include "server/config/toml_file.h"
#include "server/listener/listener.h"

extern char** environ;

namespace attention::server {
namespace {

constexpr char kEnvironmentPrefix[] = "ATTENTION_";

// ATTENTION_KV_PAGE_SIZE of --kv-page-size.
std::string EnvironmentName(const std::string& flag) {
  std::string name = kEnvironmentPrefix + flag.substr(2);
  for (char& c : name) c = c == '-' ? '_' : static_cast<char>(std::toupper(c));
  return name;
}

// Accepts "15m", "1h30m", "250ms".
CLI::Validator DurationCheck(absl::Duration least) {
  return CLI::Validator(
      [=](std::string& text) -> std::string {
        absl::Duration duration;
        if (absl::ParseDuration(text, &duration) && duration >= least &&
            duration < absl::InfiniteDuration()) {
          return {};
        }
        return absl::StrCat("is '", text, "', expected a ",
                            least > absl::ZeroDuration() ? "positive duration" : "duration",
                            " such as 90s, 15m or 1h30m");
      },
      "DURATION", "duration");
}

CLI::Validator MessageSizeCheck() {
  return CLI::Validator(
      [](std::string& text) -> std::string {
        constexpr std::int64_t kLeast = 1024;
        constexpr std::int64_t kMost = (std::int64_t{1} << 31) - 1;
        const auto bytes = ParseByteSize(text);
        if (bytes && (*bytes == 0 || (*bytes >= kLeast && *bytes <= kMost))) return {};
        return absl::StrCat("is '", text, "', expected 0 or ", kLeast, " to ", kMost, " bytes");
      },
      "BYTES", "message size");
}

CLI::Validator ByteSizeCheck(std::int64_t least) {
  return CLI::Validator(
      [=](std::string& text) -> std::string {
        const auto bytes = ParseByteSize(text);
        if (bytes && *bytes >= least) return {};
        return absl::StrCat("is '", text, "', expected a whole number of bytes of at least ", least,
                            ", such as 1073741824, 512MiB or 2GiB");
      },
      "BYTES", "byte size");
}

CLI::Validator AtLeast(std::int64_t least) {
  return CLI::Validator(
      [=](std::string& text) -> std::string {
        std::int64_t value = 0;
        if (absl::SimpleAtoi(text, &value) && value >= least) return {};
        return absl::StrCat("is '", text, "', expected a whole number of at least ", least);
      },
      "NUMBER", "number");
}

CLI::Validator PageSizeCheck() {
  return CLI::Validator(
      [](std::string& text) -> std::string {
        const long long value = std::atoll(text.c_str());
        if (value >= 16 && value <= 65536 && value % 16 == 0) return {};
        return "is '" + text + "', expected a multiple of 16 from 16 to 65536";
      },
      "TOKENS", "page size");
}

// Says what is wrong, or nothing.
std::string CheckListener(const std::string& text) {
  return std::string(ParseListener(text).status().message());
}

std::vector<std::string> Split(const std::string& list) { return absl::StrSplit(list, ','); }

CLI::Validator ListenCheck() {
  return CLI::Validator(
      [](std::string& text) -> std::string {
        for (const std::string& address : Split(text)) {
          if (std::string error = CheckListener(address); !error.empty()) return error;
        }
        return {};
      },
      "ADDRESS[,ADDRESS...]", "address list");
}

CLI::Validator AdminListenCheck() {
  return CLI::Validator(
      [](std::string& text) -> std::string {
        if (text.empty()) return {};
        if (absl::StartsWith(text, "unix:") || absl::StrContains(text, '?')) {
          return "is '" + text + "', expected host:port";
        }
        return CheckListener(text);
      },
      "ADDRESS", "address");
}

CLI::Validator SharedMemoryListenCheck() {
  return CLI::Validator(
      [](std::string& text) -> std::string {
        if (text.empty()) return {};
        const auto listener = ParseListener(text);
        if (listener.ok() && listener->is_unix()) return {};
        return "is '" + text + "', expected unix:path";
      },
      "ADDRESS", "unix socket");
}

// Says what is wrong, or nothing.
std::string ParseTenantWeights(const std::string& text, std::map<std::string, double>* weights) {
  if (text.empty()) return {};
  for (const std::string& entry : Split(text)) {
    const std::pair<std::string, std::string> parts =
        absl::StrSplit(entry, absl::MaxSplits('=', 1));
    double weight = 0;
    if (parts.first.empty() || !absl::SimpleAtod(parts.second, &weight) || !(weight >= 1e-3) ||
        !(weight <= 1e3)) {
      return "has '" + entry + "', expected tenant=weight with a weight from 0.001 to 1000";
    }
    (*weights)[parts.first] = weight;
  }
  return {};
}

CLI::Validator TenantWeightsCheck() {
  return CLI::Validator(
      [](std::string& text) {
        std::map<std::string, double> weights;
        return ParseTenantWeights(text, &weights);
      },
      "TENANT=WEIGHT[,...]", "tenant weights");
}

// Says what is wrong, or nothing.
std::string ParseOrdinals(const std::string& text, std::vector<int>* ordinals) {
  if (text.empty()) return {};
  for (const std::string& entry : Split(text)) {
    int ordinal = 0;
    if (!absl::SimpleAtoi(entry, &ordinal) || ordinal < 0 || ordinal > 255) {
      return "has '" + entry + "', expected ordinals from 0 to 255";
    }
    if (std::find(ordinals->begin(), ordinals->end(), ordinal) != ordinals->end()) {
      return "has '" + entry + "' twice, expected each GPU once";
    }
    ordinals->push_back(ordinal);
  }
  return {};
}

CLI::Validator OrdinalsCheck() {
  return CLI::Validator(
      [](std::string& text) {
        std::vector<int> ordinals;
        return ParseOrdinals(text, &ordinals);
      },
      "ORDINAL[,...]", "ordinals");
}

class Parser {
 public:
  explicit Parser(ServerConfig& config) : config_(config) {
    AddNetwork();
    AddCompute();
    AddBounds();
    AddSessions();
    AddLogging();
  }

  CLI::App& app() { return app_; }

  // Once parsed: what CLI11 cannot store in the configuration itself.
  void Finish() {
    config_.listen = Split(listen_);
    ParseTenantWeights(tenant_weights_, &config_.tenant_weights);
    ParseOrdinals(cuda_devices_, &config_.cuda_devices);
  }

  // CLI11 lets the file win over the environment. An operator expects the opposite, so variables
  // are turned into flags, which win over both, unless the flag itself was given.
  std::vector<std::string> WithEnvironment(std::vector<std::string> arguments) const {
    std::vector<std::string> from_environment;
    for (const CLI::Option* option : app_.get_options()) {
      const std::string flag = "--" + option->get_single_name();
      const char* value =
          option->get_envname().empty() ? nullptr : std::getenv(option->get_envname().c_str());
      const bool is_given =
          std::any_of(arguments.begin(), arguments.end(), [&](const std::string& argument) {
            return argument == flag || argument.rfind(flag + "=", 0) == 0;
          });
      if (value != nullptr && !is_given) from_environment.push_back(flag + "=" + value);
    }
    arguments.insert(arguments.end(), from_environment.begin(), from_environment.end());
    return arguments;
  }

  // Says what is wrong, or nothing: a variable whose name is nearly that of a key was meant for it.
  // Others are only told of: a cluster sets such variables itself (ATTENTION_SERVICE_HOST of a
  // service that is called attention), and so do scripts.
  std::string CheckEnvironment(std::vector<std::string>* warnings) const {
    std::vector<std::string> known;
    for (const CLI::Option* option : app_.get_options()) known.push_back(option->get_envname());
    for (char** entry = environ; *entry != nullptr; ++entry) {
      const std::string name = std::string(*entry).substr(0, std::string(*entry).find('='));
      if (!absl::StartsWith(name, kEnvironmentPrefix) ||
          std::find(known.begin(), known.end(), name) != known.end()) {
        continue;
      }
      const std::string nearest = NearestName(name, known);
      if (!nearest.empty()) {
        return absl::StrCat("environment variable ", name, " is no key of the configuration, ",
                            "did you mean ", nearest);
      }
      warnings->push_back(
          absl::StrCat("environment variable ", name, " is no key of the configuration: ignored"));
    }
    return {};
  }

  // An error's text, with the line of the file where the value comes from.
  std::string WithPlace(std::string text) const {
    const std::string flag = text.substr(0, text.find(':'));
    if (!absl::StartsWith(flag, "--")) return text;
    const std::string place = file_->PlaceOf(flag.substr(2));
    text.insert(text.find('\n') == std::string::npos ? text.size() : text.find('\n'), place);
    return text;
  }

 private:
  template <typename T>
  CLI::Option* Add(const std::string& flag, T& value, const std::string& help) {
    return app_.add_option(flag, value, help)
        ->envname(EnvironmentName(flag))
        ->capture_default_str();
  }

  // CLI11 knows no absl::Duration: kept as text, parsed when the option is set.
  void AddDuration(const std::string& flag, absl::Duration& value, const std::string& help,
                   absl::Duration least = absl::Nanoseconds(1)) {
    app_.add_option_function<std::string>(
            flag, [&value](const std::string& text) { absl::ParseDuration(text, &value); }, help)
        ->check(DurationCheck(least))
        ->envname(EnvironmentName(flag))
        ->default_str(absl::FormatDuration(value));
  }

  // CLI11's own suffixes have several meanings.
  void AddBytes(const std::string& flag, std::int64_t& value, const std::string& help,
                const CLI::Validator& check = ByteSizeCheck(0)) {
    app_.add_option_function<std::string>(
            flag, [&value](const std::string& text) { value = ParseByteSize(text).value_or(0); },
            help)
        ->check(check)
        ->envname(EnvironmentName(flag))
        ->default_str(FormatByteSize(value));
  }

  void AddNetwork() {
    app_.config_formatter(file_);
    app_.allow_config_extras(CLI::config_extras_mode::error);
    app_.set_config("--config", "", "Read keys from this TOML file")->envname("ATTENTION_CONFIG");
    // One value, not CLI11's list, so that --print-config writes what the file can hold.
    Add("--listen", listen_,
        "Addresses for gRPC: host:port or unix:path, each with ?key=value settings; port 0 picks "
        "one")
        ->check(ListenCheck());
    Add("--admin-listen", config_.admin_listen,
        "host:port for /metrics, /healthz and /readyz; empty: none")
        ->check(AdminListenCheck());
    Add("--shared-memory-listen", config_.shared_memory_listen,
        "unix:path where clients on this host get shared memory; empty: not offered")
        ->check(SharedMemoryListenCheck());
    AddSharedMemoryLimits();
    Add("--port-file", config_.port_file, "Write the addresses, as JSON, to this file when ready");
    Add("--max-connections", config_.max_connections,
        "Connections of all listeners; more are closed at once; 0: what the limit of open files "
        "allows, at most 10000")
        ->check(CLI::Range(0, 1000000));
    Add("--max-connections-per-peer", config_.max_connections_per_peer,
        "Connections of one address, or of one user at unix sockets; 0: half of max-connections")
        ->check(CLI::Range(0, 1000000));
    AddBytes("--max-message-bytes", config_.max_message_bytes,
             "Largest request message; 0: half of max-receiving-bytes, at most 1 GiB",
             MessageSizeCheck());
    AddBytes("--max-response-bytes", config_.max_response_bytes,
             "All results of one request, and what is between a layer's projections; 0: as "
             "max-message-bytes");
    AddBytes("--max-result-bytes", config_.max_result_bytes,
             "Results that are computed or not yet read; 0: a tenth of the memory, at most 2 GiB");
    AddBytes(
        "--max-receiving-bytes", config_.max_receiving_bytes,
        "Bytes of requests that have not wholly come; beyond, calls of the connection with the "
        "most are ended; 0: an eighth of the memory, at most 2 GiB");
    Add("--max-calls", config_.max_calls,
        "Calls that are open at a time, streams included; 0: one for each 64 KiB of "
        "max-receiving-bytes")
        ->check(CLI::NonNegativeNumber);
    Add("--max-stream-requests", config_.max_stream_requests,
        "Unanswered requests of one stream before it is no longer read")
        ->check(CLI::Range(1, 65536));
    AddBytes("--max-stream-bytes", config_.max_stream_bytes,
             "Bytes of those, and of answers that the client has not read; one request of any size "
             "is read",
             ByteSizeCheck(1));
    Add("--completion-threads", config_.completion_threads,
        "Threads that receive and answer calls with tensors; 0: one for each four cores")
        ->check(CLI::Range(0, 256));
    AddDuration("--keepalive-interval", config_.keepalive_interval,
                "Silence of a connection until its client is asked whether it is there; one that "
                "does not answer for a third as long again has gone, and its streams end");
    AddDuration("--drain-delay", config_.drain_delay,
                "After SIGTERM, how long calls are still taken while the server says that it is "
                "not ready",
                absl::ZeroDuration());
    AddDuration("--drain-timeout", config_.drain_timeout,
                "After SIGTERM, how long calls in flight may take");
    AddDuration("--device-recovery-timeout", config_.device_recovery_timeout,
                "How long no device may be usable after failures before the server ends, so that "
                "it is started again");
  }

  void AddSharedMemoryLimits() {
    AddBytes("--max-shared-bytes", config_.max_shared_bytes,
             "Shared memory of all clients; 0: an eighth of memory, at most 4GiB");
    AddBytes("--max-shared-bytes-per-user", config_.max_shared_bytes_per_user,
             "The same of one user of the system; 0: half of that of all");
    AddBytes("--max-shared-bytes-per-connection", config_.max_shared_bytes_per_connection,
             "The same of one client; 0: a quarter of that of all");
    Add("--max-shared-regions", config_.max_shared_regions, "Regions of shared memory of all")
        ->check(CLI::Range(std::int64_t{1}, std::int64_t{32768}));
    Add("--max-shared-regions-per-connection", config_.max_shared_regions_per_connection,
        "The same of one client")
        ->check(AtLeast(1));
    Add("--max-shared-connections", config_.max_shared_connections,
        "Clients with shared memory; more wait")
        ->check(CLI::Range(1, 65536));
    Add("--max-shared-connections-per-user", config_.max_shared_connections_per_user,
        "The same of one user of the system; more are refused")
        ->check(CLI::Range(1, 65536));
  }

  void AddCompute() {
    Add("--server-name", config_.server_name, "Name of this server in session handles");
    Add("--backend", config_.backend, "Kernels to use: cpu, cuda, or reference (float64, slow)")
        ->check(CLI::IsMember({"cpu", "cuda", "reference"}));
    Add("--cuda-devices", cuda_devices_,
        "With --backend cuda, the ordinals of the GPUs, 0,2,...; empty: all that can be used")
        ->check(OrdinalsCheck());
    Add("--workers", config_.workers,
        "Workers, each with threads, KV pages and a queue of its own; 0: one for each NUMA "
        "node, or for each GPU")
        ->check(CLI::Range(0, 256));
    Add("--threads", config_.threads, "Compute threads of all workers; 0: one a core")
        ->check(CLI::Range(0, 4096));
    Add("--pin-threads", config_.pin_threads,
        "Keep each compute thread on a core: yes, no, or auto (where there are several workers)")
        ->check(CLI::IsMember({"auto", "yes", "no"}));
    AddBytes("--kv-capacity-bytes", config_.kv_capacity_bytes,
             "Memory for KV pages; 0: a quarter of what the process may use");
    Add("--kv-page-size", config_.kv_page_size, "Tokens of a KV page")->check(PageSizeCheck());
    AddBytes("--kv-spill-bytes", config_.kv_spill_bytes,
             "Host memory for the KV pages of idle sessions while a device has none left; 0: none");
    AddDuration("--kv-spill-idle", config_.kv_spill_idle,
                "How long a session must have been idle for its pages to be moved there");
    AddBytes("--layer-capacity-bytes", config_.layer_capacity_bytes,
             "Memory for layers' weights; 0: a quarter of what the process may use");
    Add("--preload-layers", config_.preload_layers,
        "JSON file of layers to have from the start, from .safetensors files");
    Add("--max-layers", config_.max_layers, "Layers of all tenants")->check(AtLeast(0));
    Add("--max-layers-per-tenant", config_.max_layers_per_tenant, "Layers of one tenant")
        ->check(AtLeast(0));
    Add("--max-pending-layers", config_.max_pending_layers,
        "Layers that are being uploaded or converted")
        ->check(CLI::Range(1, 65536));
    Add("--max-pending-layers-per-tenant", config_.max_pending_layers_per_tenant,
        "The same of one tenant")
        ->check(CLI::Range(1, 65536));
    AddDuration("--upload-stall-timeout", config_.upload_stall_timeout,
                "How long a layer's upload, or the connection of a request that has not wholly "
                "come, may bring hardly anything before the call is ended");
  }

  void AddBounds() {
    Add("--max-queued-requests", config_.max_queued_requests, "Requests that may wait")
        ->check(CLI::Range(std::int64_t{1}, std::int64_t{1} << 30));
    AddBytes("--max-queued-bytes", config_.max_queued_bytes,
             "Tensor bytes that may wait; 0: an eighth of the memory, at most 2 GiB");
    Add("--max-batch-requests", config_.max_batch_requests, "Requests of one batch; 1: no batching")
        ->check(CLI::Range(std::int64_t{1}, std::int64_t{65536}));
    AddDuration("--max-batch-work", config_.max_batch_work,
                "Estimated computing time of one batch; a longer request runs alone, in slices");
    AddDuration("--max-contended-batch-work", config_.max_contended_batch_work,
                "The same of a batch while several tenants have work");
    AddDuration("--max-inline-work", config_.max_inline_work,
                "Estimated computing time up to which an idle server computes on the thread that "
                "received the request");
    Add("--long-work-share", config_.long_work_share,
        "Of a tenant's computing time, what its long requests get while it has short ones, too")
        ->check(CLI::Range(0.01, 0.99));
    Add("--tenant-weights", tenant_weights_, "tenant=weight,...: shares of the machine; default 1")
        ->check(TenantWeightsCheck());
    Add("--max-active-tenants", config_.max_active_tenants,
        "Tenants without a weight that have a turn of their own; more share one")
        ->check(CLI::Range(std::int64_t{0}, std::int64_t{65536}));
  }

  void AddSessions() {
    Add("--max-sessions", config_.max_sessions, "Sessions of all tenants")->check(AtLeast(0));
    Add("--max-sessions-per-tenant", config_.max_sessions_per_tenant, "Sessions of one tenant")
        ->check(AtLeast(0));
    AddDuration("--session-ttl", config_.session_ttl, "Idle time after which a session is dropped");
    AddDuration("--max-session-ttl", config_.max_session_ttl, "Longest TTL a client may ask for");
  }

  void AddLogging() {
    Add("--log-level", config_.log_level, "Least severe level that is logged")
        ->check(CLI::IsMember({"trace", "debug", "info", "warn", "error"}));
    Add("--log-format", config_.log_format, "Log as text or JSON lines")
        ->check(CLI::IsMember({"text", "json"}));
    app_.add_flag("--print-config", prints_config_, "Print the effective configuration and exit")
        ->configurable(false);
    app_.set_version_flag("--version",
                          absl::StrCat("attention-server ", kVersion, " (", kCommit, ")"));
  }

  ServerConfig& config_;
  std::string tenant_weights_;
  std::string cuda_devices_;
  std::string listen_ = absl::StrJoin(config_.listen, ",");
  bool prints_config_ = false;
  CLI::App app_{"attention-server: attention as a remote compute service"};
  const std::shared_ptr<TomlFile> file_ = std::make_shared<TomlFile>(app_);
};

}  // namespace

ParsedCommandLine ParseCommandLine(int argc, const char* const* argv) {
  ParsedCommandLine parsed;
  Parser parser(parsed.config);
  CLI::App& app = parser.app();
  if (std::string error = parser.CheckEnvironment(&parsed.warnings); !error.empty()) {
    parsed.is_exit = true;
    parsed.exit_code = 2;
    parsed.text = error + "\n";
    return parsed;
  }
  try {
    std::vector<std::string> arguments = parser.WithEnvironment({argv + 1, argv + argc});
    std::reverse(arguments.begin(), arguments.end());  // CLI11 takes them from the back
    app.parse(arguments);
  } catch (const CLI::ParseError& error) {
    std::ostringstream out;
    parsed.is_exit = true;
    parsed.exit_code = app.exit(error, out, out) == 0 ? 0 : 2;
    parsed.text = parser.WithPlace(out.str());
    return parsed;
  }
  parser.Finish();
  if (app.count("--print-config") > 0) {
    parsed.is_exit = true;
    parsed.text = app.config_to_str(/*default_also=*/true, /*write_description=*/true);
  }
  return parsed;
}

}  // namespace attention::server
