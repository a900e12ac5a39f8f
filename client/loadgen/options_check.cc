#include "client/loadgen/options_check.h"

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <limits>

#include "absl/strings/str_cat.h"
#include "client/loadgen/mixed_workload.h"
#include "kernels/api/attention_params.h"

namespace attention::loadgen {
namespace {

constexpr int kMaxInFlight = 100000;
constexpr int kMaxHeads = 1024;
constexpr int kMaxLayers = 1024;  // as SessionGeometry
constexpr int kMaxChannels = 64;  // as ClientOptions
constexpr int kMaxThreads = 256;
constexpr int kMaxStreams = 100000;
constexpr std::int64_t kMaxTokens = std::int64_t{1}
                                    << 24;  // far beyond what a 2 GiB message carries
constexpr double kMaxRate = 1e6;
constexpr std::int64_t kMaxMessageBytes = std::numeric_limits<std::int32_t>::max();  // gRPC's

absl::Status Wrong(const std::string& text) { return absl::InvalidArgumentError(text); }

absl::Status CheckRange(const char* flag, std::int64_t value, std::int64_t min, std::int64_t max) {
  if (value >= min && value <= max) return absl::OkStatus();
  return Wrong(absl::StrCat(flag, " is ", value, ", expected ", min, " to ", max));
}

absl::Status CheckAll(std::initializer_list<absl::Status> checks) {
  for (const absl::Status& check : checks) {
    if (!check.ok()) return check;
  }
  return absl::OkStatus();
}

// A flag that the rest of the command line makes meaningless.
absl::Status CheckUseless(const GivenFlags& given, bool applies,
                          std::initializer_list<const char*> flags, const char* only_with) {
  if (applies) return absl::OkStatus();
  for (const char* flag : flags) {
    if (given(flag)) return Wrong(absl::StrCat(flag, " applies only with ", only_with));
  }
  return absl::OkStatus();
}

absl::Status CheckMode(const Options& options, const GivenFlags& given) {
  if (options.mode == LoopMode::kClosed) {
    if (absl::Status status =
            CheckUseless(given, false, {"--rate", "--arrivals", "--max-in-flight"}, "--mode open");
        !status.ok()) {
      return status;
    }
    return CheckRange("--concurrency", options.concurrency, 1, kMaxInFlight);
  }
  if (given("--concurrency")) return Wrong("--concurrency applies only with --mode closed");
  if (!given("--rate")) return Wrong("--mode open needs --rate");
  if (!(options.rate > 0 && options.rate <= kMaxRate)) {
    return Wrong(absl::StrCat("--rate is ", options.rate, ", expected above 0, up to ",
                              static_cast<std::int64_t>(kMaxRate)));
  }
  return CheckRange("--max-in-flight", options.max_in_flight, 1, kMaxInFlight);
}

absl::Status CheckTimes(const Options& options) {
  if (options.duration.has_value() && *options.duration <= absl::ZeroDuration()) {
    return Wrong(absl::StrCat("--duration is ", absl::FormatDuration(*options.duration),
                              ", expected above 0"));
  }
  if (options.warmup < absl::ZeroDuration()) {
    return Wrong(absl::StrCat("--warmup is ", absl::FormatDuration(options.warmup),
                              ", expected 0 or above"));
  }
  if (options.timeout <= absl::ZeroDuration()) {
    return Wrong(
        absl::StrCat("--timeout is ", absl::FormatDuration(options.timeout), ", expected above 0"));
  }
  if (options.connect_timeout <= absl::ZeroDuration()) {
    return Wrong(absl::StrCat("--connect-timeout is ",
                              absl::FormatDuration(options.connect_timeout), ", expected above 0"));
  }
  if (!options.requests.has_value()) return absl::OkStatus();
  return CheckRange("--requests", *options.requests, 1, std::numeric_limits<std::int32_t>::max());
}

absl::Status CheckShape(const ShapeOptions& shape) {
  absl::Status ranges = CheckAll({CheckRange("--q-len", shape.q_len, 1, kMaxTokens),
                                  CheckRange("--kv-len", shape.kv_len, 1, kMaxTokens),
                                  CheckRange("--num-q-heads", shape.num_q_heads, 1, kMaxHeads),
                                  CheckRange("--num-kv-heads", shape.num_kv_heads, 1, kMaxHeads),
                                  CheckRange("--head-dim-qk", shape.head_dim_qk, 1, kMaxHeadDimQk),
                                  CheckRange("--head-dim-v", shape.head_dim_v, 1, kMaxHeadDimV),
                                  CheckRange("--window", shape.window, 0, kMaxTokens)});
  if (!ranges.ok()) return ranges;
  if (shape.num_q_heads % shape.num_kv_heads != 0) {
    return Wrong(absl::StrCat("--num-q-heads is ", shape.num_q_heads,
                              ", expected a multiple of --num-kv-heads (", shape.num_kv_heads,
                              ")"));
  }
  return absl::OkStatus();
}

absl::Status CheckMessageSize(const Options& options) {
  const ShapeOptions& shape = options.shape;
  const bool has_attend =
      options.workload == WorkloadKind::kAttend || options.workload == WorkloadKind::kMixed;
  const std::int64_t kv_rows = has_attend ? std::max(shape.kv_len, shape.q_len) : shape.q_len;
  const std::int64_t elements =
      shape.q_len * shape.num_q_heads * shape.head_dim_qk +
      kv_rows * shape.num_kv_heads * (std::int64_t{shape.head_dim_qk} + shape.head_dim_v);
  const std::int64_t bytes = elements * static_cast<std::int64_t>(DTypeBytes(shape.dtype));
  if (bytes <= kMaxMessageBytes) return absl::OkStatus();
  return Wrong(absl::StrCat("a request of this shape has ", bytes, " bytes, expected at most ",
                            kMaxMessageBytes, ", which one gRPC message can carry"));
}

absl::Status CheckSessions(const Options& options, const GivenFlags& given) {
  const bool is_mixed = options.workload == WorkloadKind::kMixed;
  const bool is_decode = options.workload == WorkloadKind::kDecode;
  const bool is_attend = options.workload == WorkloadKind::kAttend;
  absl::Status useless = CheckAll(
      {CheckUseless(given, is_decode || is_mixed, {"--context", "--decode-tokens"},
                    "--workload decode or mixed"),
       CheckUseless(given, options.uses_sessions(),
                    {"--sessions", "--layers", "--streams", "--kv-dtype"},
                    "--workload prefill, decode or mixed"),
       CheckUseless(given, !is_decode, {"--q-len"}, "--workload attend, prefill or mixed"),
       CheckUseless(given, is_attend || is_mixed, {"--kv-len"}, "--workload attend or mixed")});
  if (!useless.ok()) return useless;
  if (!options.uses_sessions()) return absl::OkStatus();
  absl::Status ranges =
      CheckAll({CheckRange("--context", options.context, 0, kMaxTokens),
                CheckRange("--decode-tokens", options.decode_tokens, 1, kMaxTokens),
                CheckRange("--sessions", options.sessions, is_mixed ? MixedWorkload::kNumKinds : 1,
                           kMaxInFlight),
                CheckRange("--streams", options.streams, 0, kMaxStreams),
                CheckRange("--layers", options.layers, 1, kMaxLayers)});
  if (!ranges.ok()) return ranges;
  if (options.streams > 0 && options.targets.size() > 1) {
    return Wrong(absl::StrCat("--target names ", options.targets.size(),
                              " servers, expected one with --streams"));
  }
  if (options.mode == LoopMode::kClosed && options.sessions < options.concurrency) {
    return Wrong(absl::StrCat("--sessions is ", options.sessions,
                              ", expected at least --concurrency (", options.concurrency,
                              "): a session has one step in flight at a time"));
  }
  return absl::OkStatus();
}

absl::Status CheckRest(const Options& options) {
  if (!(options.verify_fraction >= 0 && options.verify_fraction <= 1)) {
    return Wrong(absl::StrCat("--verify is ", options.verify_fraction, ", expected 0 to 1"));
  }
  return CheckAll({CheckRange("--channels", options.channels, 1, kMaxChannels),
                   CheckRange("--threads", options.threads, 1, kMaxThreads)});
}

}  // namespace

absl::Status CheckOptions(const Options& options, const GivenFlags& given) {
  if (options.targets.empty()) return Wrong("--target is missing, expected host:port");
  for (const absl::Status& status :
       {CheckMode(options, given), CheckTimes(options), CheckSessions(options, given),
        CheckShape(options.shape), CheckMessageSize(options), CheckRest(options)}) {
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace attention::loadgen
