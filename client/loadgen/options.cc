#include "client/loadgen/options.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <map>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "attention/client/version.h"
#include "client/flags/connection_flags.h"
#include "client/loadgen/options_check.h"

namespace attention::loadgen {
namespace {

const std::map<std::string, WorkloadKind> kWorkloads = {{"attend", WorkloadKind::kAttend},
                                                        {"prefill", WorkloadKind::kPrefill},
                                                        {"decode", WorkloadKind::kDecode},
                                                        {"mixed", WorkloadKind::kMixed}};
const std::map<std::string, LoopMode> kModes = {{"closed", LoopMode::kClosed},
                                                {"open", LoopMode::kOpen}};
const std::map<std::string, Arrivals> kArrivals = {{"poisson", Arrivals::kPoisson},
                                                   {"constant", Arrivals::kConstant}};
const std::map<std::string, SharedMemory> kSharedMemory = {
    {"auto", SharedMemory::kAuto}, {"on", SharedMemory::kOn}, {"off", SharedMemory::kOff}};
const std::map<std::string, DType> kDTypes = {
    {"float32", DType::kFloat32}, {"float16", DType::kFloat16}, {"bfloat16", DType::kBFloat16}};
const std::map<std::string, DType> kKvDTypes = {{"float32", DType::kFloat32},
                                                {"float16", DType::kFloat16},
                                                {"bfloat16", DType::kBFloat16},
                                                {"int8", DType::kInt8},
                                                {"float8_e4m3", DType::kFloat8E4M3}};

// CLI11's own CheckedTransformer prints the enum's numbers in its message; this one the words.
template <typename Enum, typename Value>
CLI::Option* AddChoice(CLI::App& app, const std::string& flag, Value* value,
                       const std::map<std::string, Enum>& words, const std::string& help) {
  std::string choices;
  for (const auto& [word, unused] : words) {
    absl::StrAppend(&choices, choices.empty() ? "" : "|", word);
  }
  const auto parse = [flag, value, choices, &words](const CLI::results_t& texts) {
    const auto found = words.find(texts.front());
    if (found == words.end()) {
      throw CLI::ValidationError(
          absl::StrCat(flag, " is \"", texts.front(), "\", expected ", choices));
    }
    *value = found->second;
    return true;
  };
  return app.add_option(flag, parse, help)->type_name(choices);
}

CLI::Option* AddDuration(CLI::App& app, const std::string& flag,
                         const std::function<void(absl::Duration)>& set, const std::string& help) {
  const auto parse = [flag, set](const CLI::results_t& texts) {
    const auto duration = ParseDurationText(texts.front());
    if (!duration.has_value()) {
      throw CLI::ValidationError(absl::StrCat(
          flag, " is \"", texts.front(),
          "\", expected a number and a unit (ns, us, ms, s, m, h), such as 10s, 250ms or 1.5h"));
    }
    set(*duration);
    return true;
  };
  return app.add_option(flag, parse, help)->type_name("DURATION");
}

void AddLoadFlags(CLI::App& app, Options* options) {
  app.add_option("--target", options->targets,
                 "Server, host:port or unix:path; repeat or separate by commas")
      ->delimiter(',')
      ->type_name("ADDR");
  AddChoice(app, "--workload", &options->workload, kWorkloads, "What a request is (attend)");
  AddChoice(app, "--mode", &options->mode, kModes, "What sets the pace (closed)");
  app.add_option("--concurrency", options->concurrency, "Closed loop: requests in flight (1)");
  app.add_option("--rate", options->rate, "Open loop: requests per second");
  AddChoice(app, "--arrivals", &options->arrivals, kArrivals, "Open loop: spacing (poisson)");
  app.add_option("--max-in-flight", options->max_in_flight,
                 "Open loop: when so many are unanswered the schedule slips (256)");
  app.add_option("--threads", options->threads,
                 "Threads that build and send requests (one a core, at most 4)");
  AddDuration(
      app, "--duration", [options](absl::Duration value) { options->duration = value; },
      "Length of the recorded part (10s)");
  AddDuration(
      app, "--warmup", [options](absl::Duration value) { options->warmup = value; },
      "Load before the recorded part (2s)");
  app.add_option_function<std::int64_t>(
      "--requests", [options](std::int64_t value) { options->requests = value; },
      "Stop after so many recorded requests");
}

void AddShapeFlags(CLI::App& app, ShapeOptions* shape) {
  app.add_option("--q-len", shape->q_len, "Queries; with prefill the prompt's tokens (128)");
  app.add_option("--kv-len", shape->kv_len, "Keys, attend and mixed (as --q-len)");
  app.add_option("--num-q-heads", shape->num_q_heads, "Query heads (8)");
  app.add_option("--num-kv-heads", shape->num_kv_heads, "Key/value heads (as --num-q-heads)");
  app.add_option("--head-dim-qk", shape->head_dim_qk, "Query and key head size (64)");
  app.add_option("--head-dim-v", shape->head_dim_v, "Value head size (as --head-dim-qk)");
  AddChoice(app, "--dtype", &shape->dtype, kDTypes, "Element type (float32)");
  app.add_flag("--causal,!--no-causal", shape->is_causal, "Causal attention (on)");
  app.add_option("--window", shape->window, "Sliding window in tokens, 0: none (0)");
}

void AddSessionFlags(CLI::App& app, Options* options) {
  AddChoice(app, "--kv-dtype", &options->shape.kv_dtype, kKvDTypes,
            "Element type of sessions' caches (as --dtype)");
  app.add_option("--context", options->context, "Decode: tokens before the first step (1024)");
  app.add_option("--decode-tokens", options->decode_tokens,
                 "Decode: steps until a session is replaced (1024)");
  app.add_option("--sessions", options->sessions,
                 "Sessions at a time (as --concurrency; open loop: 64, or --max-in-flight)");
  app.add_option("--layers", options->layers, "Layers of a session, one request each (1)");
  app.add_option("--streams", options->streams,
                 "Send steps on so many open streams, 0: each as a call of its own (0)");
}

void AddOtherFlags(CLI::App& app, Options* options) {
  app.add_option("--seed", options->seed, "Of arrivals, data and samples (1)");
  AddDuration(
      app, "--timeout", [options](absl::Duration value) { options->timeout = value; },
      "Deadline of each call (30s)");
  AddDuration(
      app, "--connect-timeout",
      [options](absl::Duration value) { options->connect_timeout = value; },
      "How long to wait for the target at the start (5s)");
  app.add_option("--channels", options->channels, "Connections to each target (1)");
  AddChoice(app, "--shared-memory", &options->shared_memory, kSharedMemory,
            "Tensors in memory shared with servers of this host; on: or fail (auto)");
  app.add_option("--verify", options->verify_fraction,
                 "Share of the answers, 0 to 1, to check against float64 (0)");
  app.add_flag("--allow-refused", options->allow_refused,
               "RESOURCE_EXHAUSTED answers do not fail the run");
  app.add_option("--json", options->json_path, "Write every figure to this file")
      ->type_name("FILE");
  app.add_flag("--quiet", options->is_quiet, "Neither progress nor table");
  app.add_flag("--progress", options->force_progress, "Progress also when stderr is no terminal");
}

int DefaultThreads() {
  const int cores = static_cast<int>(std::thread::hardware_concurrency());
  return std::clamp(cores, 1, 4);
}

// The defaults that follow from other options.
void FillDefaults(const CLI::App& app, Options* options) {
  const auto given = [&app](const char* flag) { return app.count(flag) > 0; };
  ShapeOptions& shape = options->shape;
  if (options->workload == WorkloadKind::kDecode) shape.q_len = 1;
  if (!given("--kv-len")) shape.kv_len = shape.q_len;
  if (!given("--num-kv-heads")) shape.num_kv_heads = shape.num_q_heads;
  if (!given("--head-dim-v")) shape.head_dim_v = shape.head_dim_qk;
  if (!given("--threads")) options->threads = DefaultThreads();
  if (!given("--sessions")) {
    options->sessions = options->mode == LoopMode::kClosed ? options->concurrency
                                                           : std::min(options->max_in_flight, 64);
  }
  if (!options->duration.has_value() && !options->requests.has_value()) {
    options->duration = absl::Seconds(10);
  }
}

ParsedOptions Mistake(absl::string_view message) {
  return {std::nullopt, 2, absl::StrCat("attention-loadgen: ", message, "\nTry --help.\n")};
}

}  // namespace

std::string ToString(WorkloadKind kind) {
  for (const auto& [word, value] : kWorkloads) {
    if (value == kind) return word;
  }
  return "unknown";
}

std::string ToString(LoopMode mode) { return mode == LoopMode::kClosed ? "closed" : "open"; }

std::string ToString(Arrivals arrivals) {
  return arrivals == Arrivals::kPoisson ? "poisson" : "constant";
}

std::string ToString(SharedMemory shared_memory) {
  for (const auto& [word, value] : kSharedMemory) {
    if (value == shared_memory) return word;
  }
  return "unknown";
}

std::optional<absl::Duration> ParseDurationText(const std::string& text) {
  // Behind a sign, digits and a point there is one unit, which ParseDuration knows or refuses.
  const std::size_t unit = text.find_first_not_of("+-.0123456789");
  const bool has_one_unit =
      unit == std::string::npos || text.find_first_of(".0123456789", unit) == std::string::npos;
  absl::Duration duration;
  if (!has_one_unit || !absl::ParseDuration(text, &duration)) return std::nullopt;
  const bool is_finite =
      duration > -absl::InfiniteDuration() && duration < absl::InfiniteDuration();
  return is_finite ? std::optional(duration) : std::nullopt;
}

ParsedOptions ParseOptions(const std::vector<std::string>& arguments) {
  CLI::App app(
      "Sends attention requests to a server at a set pace and reports what came back.\n"
      "Exit code: 0 all well, 1 errors or mismatches, 2 wrong flags, 3 target not reached, "
      "130 interrupted.\n"
      "DURATION: a number and a unit (ns, us, ms, s, m, h), such as 10s, 250ms or 1.5h.",
      "attention-loadgen");
  app.set_version_flag("--version", "attention-loadgen " + std::string(client::Version()));
  Options options;
  AddLoadFlags(app, &options);
  AddShapeFlags(app, &options.shape);
  AddSessionFlags(app, &options);
  AddOtherFlags(app, &options);
  client::AddConnectionFlags(app, &options.connection);
  try {
    app.parse(std::vector<std::string>(arguments.rbegin(), arguments.rend()));
  } catch (const CLI::CallForHelp&) {
    return {std::nullopt, 0, app.help()};
  } catch (const CLI::CallForVersion& version) {
    return {std::nullopt, 0, absl::StrCat(version.what(), "\n")};
  } catch (const CLI::ParseError& error) {
    return Mistake(error.what());
  }
  FillDefaults(app, &options);
  const GivenFlags given([&app](const std::string& flag) { return app.count(flag) > 0; });
  if (absl::Status status = CheckOptions(options, given); !status.ok()) {
    return Mistake(status.message());
  }
  return {options, 0, ""};
}

}  // namespace attention::loadgen
