#include <gmock/gmock.h>

#include <string>
#include <vector>

#include "client/loadgen/report.h"
#include "tests/unit/client/loadgen/test_options.h"

namespace attention::loadgen {
namespace {

using ::testing::Contains;
using Pointer = nlohmann::ordered_json::json_pointer;

Report FullReport() {
  Report report;
  report.options = SmallOptions();
  report.machine = ReadMachineInfo();
  client::ServerInfo server;
  server.devices.emplace_back();
  report.server = server;
  report.totals.errors[{"INTERNAL", "(none)"}] = {1, "oops"};
  report.facts.recorded = absl::Seconds(1);
  return report;
}

// The keys that scripts may rely on.
std::vector<std::string> DocumentedKeys() {
  std::vector<std::string> keys = {"/schema_version", "/started", "/recorded_seconds",
                                   "/interrupted", "/exit_code"};
  const auto add = [&keys](const std::string& parent, const std::vector<std::string>& children) {
    for (const std::string& child : children) keys.push_back(parent + "/" + child);
  };
  add("/options", {"targets",
                   "workload",
                   "mode",
                   "concurrency",
                   "rate",
                   "arrivals",
                   "max_in_flight",
                   "threads",
                   "warmup_seconds",
                   "duration_seconds",
                   "requests",
                   "shape",
                   "context",
                   "decode_tokens",
                   "sessions",
                   "layers",
                   "streams",
                   "seed",
                   "timeout_seconds",
                   "connect_timeout_seconds",
                   "tenant",
                   "channels",
                   "verify",
                   "allow_refused",
                   "quiet",
                   "progress",
                   "shared_memory",
                   "tls",
                   "token"});
  add("/options/shape", {"q_len", "kv_len", "num_q_heads", "num_kv_heads", "head_dim_qk",
                         "head_dim_v", "dtype", "kv_dtype", "causal", "window"});
  add("/machine", {"cpu", "cores", "memory_gib", "system", "compiler"});
  add("/server", {"version", "commit", "server_name", "devices"});
  add("/server/devices/0", {"backend", "name", "isa", "num_threads", "is_used"});
  add("/requests", {"answered", "ok", "refused", "errors", "unsent", "abandoned"});
  add("/errors/0", {"code", "reason", "count", "example"});
  add("/rates", {"requests_per_second", "tokens_per_second", "gflops", "sent_mb_per_second",
                 "received_mb_per_second"});
  for (const char* times :
       {"/latency_us", "/server_queue_us", "/server_batch_formation_us", "/server_compute_us",
        "/outside_server_us", "/refusal_us", "/schedule_slip_us", "/self_check/send_lag_us"}) {
    add(times, {"count", "mean", "min", "p50", "p90", "p99", "p99_9", "max"});
  }
  add("/batch_size", {"mean", "p50", "max"});
  add("/verified", {"checked", "rows_checked", "mismatches", "unchecked", "examples"});
  add("/shared_memory", {"channels", "mapped_bytes", "requests"});
  add("/self_check",
      {"cores_used", "cores", "sender_busy_share", "send_lag_us", "limited", "warnings"});
  return keys;
}

TEST(JsonTest, HoldsEveryDocumentedKey) {
  const nlohmann::ordered_json json = ToJson(FullReport());
  for (const std::string& key : DocumentedKeys()) {
    EXPECT_TRUE(json.contains(Pointer(key))) << key;
  }
}

TEST(JsonTest, HoldsNothingUndocumented) {
  const std::vector<std::string> documented = DocumentedKeys();
  const nlohmann::ordered_json flat = ToJson(FullReport()).flatten();
  for (const auto& [key, value] : flat.items()) {
    // An element of a list of plain values stands for the list.
    const std::size_t last = key.rfind('/');
    const bool is_element = key.find_first_not_of("0123456789", last + 1) == std::string::npos;
    EXPECT_THAT(documented, Contains(is_element ? key.substr(0, last) : key));
  }
}

TEST(JsonTest, OptionsNotGivenAreNull) {
  Report report = FullReport();
  report.server.reset();
  const nlohmann::ordered_json json = ToJson(report);
  EXPECT_TRUE(json["options"]["duration_seconds"].is_null());
  EXPECT_EQ(json["options"]["requests"], 10);
  EXPECT_TRUE(json["server"].is_null());
}

TEST(JsonTest, TimesAreMicroseconds) {
  Report report = FullReport();
  report.totals.latency.Add(absl::Milliseconds(3));
  const nlohmann::ordered_json json = ToJson(report);
  EXPECT_EQ(json["latency_us"]["max"], 3000);
  EXPECT_EQ(json["latency_us"]["p99_9"], 3000);
}

TEST(JsonTest, MachineIsKnown) {
  const MachineInfo machine = ReadMachineInfo();
  EXPECT_FALSE(machine.cpu.empty());
  EXPECT_GE(machine.cores, 1);
  EXPECT_GT(machine.memory_gib, 0);
  EXPECT_FALSE(machine.system.empty());
  EXPECT_FALSE(machine.compiler.empty());
}

}  // namespace
}  // namespace attention::loadgen
