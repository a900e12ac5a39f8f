// Everything that a run found out, and what follows from it. Plain values; the table and the JSON
// file are two ways to write one Report.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "attention/client/server_info.h"
#include "attention/client/shared_tensor.h"
#include "client/loadgen/collector.h"
#include "client/loadgen/driver.h"
#include "client/loadgen/machine.h"
#include "client/loadgen/options.h"
#include "client/loadgen/verifier.h"
#include "nlohmann/json.hpp"

namespace attention::loadgen {

enum ExitCode {
  kExitOk = 0,
  kExitFailed = 1,         // errors, mismatches, refusals not allowed, or nothing answered
  kExitUsage = 2,          // wrong flags
  kExitUnreachable = 3,    // the target did not answer at the start
  kExitInterrupted = 130,  // by Ctrl-C or SIGTERM, whatever had happened by then
};

struct Report {
  Options options;
  MachineInfo machine;
  std::optional<client::ServerInfo> server;  // absent when the server would not tell
  absl::Time started;
  RunFacts facts;
  Totals totals;
  VerifyResult verified;
  client::SharedMemoryUsage shared_memory;  // at the end
};

// Means over the recorded time, of the answers that were OK.
struct Rates {
  double requests_per_second = 0;
  double tokens_per_second = 0;   // queries; a token of a session of L layers counts L times
  double gflops = 0;              // 10^9 operations of visible pairs per second
  double sent_mb_per_second = 0;  // 10^6 bytes of tensors
  double received_mb_per_second = 0;
};
Rates RatesOf(const Report& report);

ExitCode ExitCodeOf(const Report& report);

// Facts that a reader must know before believing the figures.
std::vector<std::string> WarningsOf(const Report& report);

std::string FormatTable(const Report& report);
nlohmann::ordered_json ToJson(const Report& report);

}  // namespace attention::loadgen
