// The command line's options, checked. A plain value: every room of the load generator takes it
// const. ParseOptions is the only place that reads flags.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "attention/client/options.h"
#include "kernels/api/dtype.h"

namespace attention::loadgen {

enum class WorkloadKind {
  kAttend,   // stateless: q, k and v travel with each request
  kPrefill,  // a session per prompt; its one Step (per layer) is the request
  kDecode,   // standing sessions, one token a Step
  kMixed,    // all three at once, each by a third of the virtual users
};
enum class LoopMode {
  kClosed,  // the next request is sent when one is answered
  kOpen,    // requests are sent by a schedule, whatever the answers do
};
enum class Arrivals { kPoisson, kConstant };
enum class SharedMemory {
  kAuto,  // where the server offers it
  kOn,    // a server that does not share is an error
  kOff,
};

std::string ToString(WorkloadKind kind);
std::string ToString(LoopMode mode);
std::string ToString(Arrivals arrivals);
std::string ToString(SharedMemory shared_memory);

// The attention that each request computes.
struct ShapeOptions {
  std::int64_t q_len = 128;   // attend: queries; prefill: tokens of the prompt; decode: always 1
  std::int64_t kv_len = 128;  // attend only
  int num_q_heads = 8;
  int num_kv_heads = 8;
  int head_dim_qk = 64;
  int head_dim_v = 64;
  DType dtype = DType::kFloat32;
  std::optional<DType> kv_dtype = {};  // of the session's cache; unset: as dtype
  bool is_causal = true;
  std::int64_t window =
      0;  // tokens; 0: none. Causal: the newest `window` keys, else half to each side
};

struct Options {
  std::vector<std::string> targets;
  WorkloadKind workload = WorkloadKind::kAttend;
  LoopMode mode = LoopMode::kClosed;

  int concurrency = 1;                     // closed loop: requests in flight
  double rate = 0;                         // open loop: requests per second
  Arrivals arrivals = Arrivals::kPoisson;  // open loop
  int max_in_flight = 256;                 // open loop
  int threads = 1;                         // that build and send requests
  absl::Duration warmup = absl::Seconds(2);
  std::optional<absl::Duration> duration;  // of the recorded part
  std::optional<std::int64_t> requests;    // recorded ones; at least one of the two is set

  ShapeOptions shape;
  std::int64_t context = 1024;        // decode: tokens in a session before its first step
  std::int64_t decode_tokens = 1024;  // decode: steps of a session until a new one replaces it
  int sessions = 1;                   // all but attend: sessions that exist at a time; mixed: users
  int layers = 1;                     // all but attend
  int streams = 0;                    // all but attend: streams that steps share; 0: a call each

  std::uint64_t seed = 1;
  absl::Duration timeout = absl::Seconds(30);  // of each call
  absl::Duration connect_timeout = absl::Seconds(5);
  client::ClientOptions connection;  // as its own flags set it: TLS, token, tenant, metadata
  int channels = 1;
  SharedMemory shared_memory = SharedMemory::kAuto;
  double verify_fraction = 0;  // 0 to 1
  bool allow_refused = false;

  std::string json_path;        // empty: none
  bool is_quiet = false;        // no progress and no table
  bool force_progress = false;  // also when stderr is no terminal

  // Requests that may be in flight at once.
  int in_flight_limit() const { return mode == LoopMode::kClosed ? concurrency : max_in_flight; }
  bool uses_sessions() const { return workload != WorkloadKind::kAttend; }
};

// Either options, or what to print and the exit code: 0 for --help and --version, 2 for a mistake.
struct ParsedOptions {
  std::optional<Options> options;
  int exit_code = 0;
  std::string message;
};
// `arguments` without the program's name.
ParsedOptions ParseOptions(const std::vector<std::string>& arguments);

// A number and one unit (ns, us, ms, s, m, h), such as "10s", "250ms" or "1.5h"; or "0". nullopt
// otherwise: what was meant by "5" or "1h2s" is anybody's guess.
std::optional<absl::Duration> ParseDurationText(const std::string& text);

}  // namespace attention::loadgen
