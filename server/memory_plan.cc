#include "server/memory_plan.h"

#include <algorithm>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "server/base/status_macros.h"

namespace attention::server {
namespace {

constexpr std::int64_t kMib = std::int64_t{1} << 20;

// Code, threads' stacks, connections and tables: what a server with nothing to do takes.
constexpr std::int64_t kProgramBytes = 64 * kMib;
// Kernels' workspace, sessions' tables, and what allocators lose.
constexpr int kWorkspaceShare = 4;
// Buffers of tensors that no call uses: as much as a few of the largest common requests.
constexpr std::int64_t kMaxIdleBufferBytes = 256 * kMib;
// More waiting work than this helps nobody.
constexpr std::int64_t kMaxWaitingBytes = 2048 * kMib;
constexpr std::int64_t kLargestDefaultMessageBytes = 1024 * kMib;
constexpr std::int64_t kMaxSharedBytes = 4096 * kMib;
constexpr std::int64_t kLeastBytes = kMib;
// gRPC receives so much of each call unasked.
constexpr std::int64_t kBytesOfACall = 64 << 10;
constexpr std::int64_t kLeastCalls = 100;

struct Use {
  std::string name;     // of the key, where there is one
  std::int64_t* bytes;  // 0: a share of what is left
  int share;            // 0: nothing unless configured
  std::int64_t most;    // 0: as much as its share
};

std::string InMib(const Use& use) { return absl::StrCat(use.name, " ", *use.bytes / kMib, " MiB"); }

absl::Status TooMuch(const std::vector<Use>& configured, const MachineLimits& limits) {
  const std::string keys = absl::StrJoin(configured, ", ", [](std::string* out, const Use& use) {
    absl::StrAppend(out, use.name, " (", *use.bytes, " bytes)");
  });
  return absl::InvalidArgumentError(absl::StrCat(
      "memory: ", keys.empty() ? "" : absl::StrCat(keys, " and "), "the program itself (",
      kProgramBytes, " bytes) exceed the ", limits.memory_bytes, " bytes of ", limits.memory_source,
      "; expected less of them"));
}

// Gives what is left beside `configured` to `others`. False: not even the least is left.
bool Share(const std::vector<Use>& configured, const std::vector<Use>& others, std::int64_t limit) {
  std::int64_t left = limit - kProgramBytes;
  for (const Use& use : configured) {
    if (*use.bytes > left) return false;
    left -= *use.bytes;
  }
  std::int64_t shares = kWorkspaceShare;
  for (const Use& use : others) shares += use.share;
  for (const Use& use : others) {
    *use.bytes = left / shares * use.share;
    if (use.most > 0) *use.bytes = std::min(*use.bytes, use.most);
    if (*use.bytes < kLeastBytes) return false;
  }
  return true;
}

absl::Status PlanResponses(bool is_configured, ServerConfig& config) {
  if (!is_configured) {
    config.max_response_bytes = std::min(config.max_message_bytes, config.max_result_bytes);
    return absl::OkStatus();
  }
  if (config.max_response_bytes <= config.max_result_bytes) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("max-response-bytes is ", config.max_response_bytes,
                   ", expected at most max-result-bytes (", config.max_result_bytes, ")"));
}

// One user may take half of the memory that clients share, and one connection a quarter.
void PlanSharedMemory(ServerConfig& config) {
  if (config.max_shared_bytes_per_user == 0) {
    config.max_shared_bytes_per_user = config.max_shared_bytes / 2;
  }
  if (config.max_shared_bytes_per_connection == 0) {
    config.max_shared_bytes_per_connection = config.max_shared_bytes / 4;
  }
}

absl::Status PlanMessages(bool is_configured, const MachineLimits& limits, ServerConfig& config) {
  if (!is_configured) {
    config.max_message_bytes =
        std::min(kLargestDefaultMessageBytes, config.max_receiving_bytes / 2);
    return absl::OkStatus();
  }
  if (config.max_message_bytes <= config.max_receiving_bytes) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("max-message-bytes is ", config.max_message_bytes,
                   ", expected at most max-receiving-bytes (", config.max_receiving_bytes,
                   "; the memory is ", limits.memory_bytes, " bytes, ", limits.memory_source, ")"));
}

}  // namespace

absl::StatusOr<MemoryPlan> PlanMemory(const ServerConfig& given, const MachineLimits& limits) {
  MemoryPlan plan;
  plan.memory_bytes = limits.memory_bytes;
  ServerConfig& config = plan.config = given;
  const bool is_in_host_memory = config.backend != "cuda";
  std::vector<Use> uses;
  if (is_in_host_memory) {
    uses.push_back({"kv-capacity-bytes", &config.kv_capacity_bytes, 8, 0});
    uses.push_back({"layer-capacity-bytes", &config.layer_capacity_bytes, 8, 0});
  }
  uses.push_back({"kv-spill-bytes", &config.kv_spill_bytes, 0, 0});
  uses.push_back({"max-queued-bytes", &config.max_queued_bytes, 4, kMaxWaitingBytes});
  uses.push_back({"max-result-bytes", &config.max_result_bytes, 3, kMaxWaitingBytes});
  uses.push_back({"max-receiving-bytes", &config.max_receiving_bytes, 4, kMaxWaitingBytes});
  uses.push_back({"idle buffers", &plan.idle_buffer_bytes, 1, kMaxIdleBufferBytes});
  if (!config.shared_memory_listen.empty()) {
    uses.push_back({"max-shared-bytes", &config.max_shared_bytes, 4, kMaxSharedBytes});
  }
  std::vector<Use> configured;
  std::vector<Use> others;
  for (const Use& use : uses) {
    if (*use.bytes > 0) configured.push_back(use);
    if (*use.bytes == 0 && use.share > 0) others.push_back(use);
  }
  if (!Share(configured, others, limits.memory_bytes)) return TooMuch(configured, limits);
  ATTENTION_RETURN_IF_ERROR(PlanMessages(given.max_message_bytes > 0, limits, config));
  if (config.max_calls == 0) {
    config.max_calls = std::max(kLeastCalls, config.max_receiving_bytes / kBytesOfACall);
  }
  ATTENTION_RETURN_IF_ERROR(PlanResponses(given.max_response_bytes > 0, config));
  PlanSharedMemory(config);

  std::int64_t left = limits.memory_bytes;
  for (const Use& use : uses) left -= *use.bytes;
  plan.text = absl::StrCat(
      "memory: ", limits.memory_bytes / kMib, " MiB (", limits.memory_source, "): ",
      absl::StrJoin(uses, ", ",
                    [](std::string* out, const Use& use) { absl::StrAppend(out, InMib(use)); }),
      ", workspace and the program itself ", left / kMib, " MiB; max-message-bytes ",
      config.max_message_bytes / kMib, " MiB");
  return plan;
}

}  // namespace attention::server
