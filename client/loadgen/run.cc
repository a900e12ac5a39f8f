#include "client/loadgen/run.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "attention/client/errors.h"
#include "client/loadgen/progress.h"

namespace attention::loadgen {
namespace {

// A wait for the target that an interrupt can end.
absl::Status WaitForTarget(const Options& options, client::Client& client,
                           const RunContext& context) {
  constexpr absl::Duration kSlice = absl::Milliseconds(500);
  const absl::Time deadline = absl::Now() + options.connect_timeout;
  for (;;) {
    absl::Status status = client.WaitUntilReady(std::min(deadline - absl::Now(), kSlice));
    if (!absl::IsDeadlineExceeded(status)) return status;
    if (absl::Now() >= deadline || context.is_interrupted()) return status;
  }
}

std::optional<client::ServerInfo> AskServer(const Options& options, client::Client& client) {
  client::CallOptions call;
  call.timeout = options.connect_timeout;
  auto info = client.GetServerInfo(call);
  if (!info.ok()) return std::nullopt;
  return *std::move(info);
}

ExitCode FailToReach(const Options& options, const absl::Status& status, std::ostream& err) {
  err << "attention-loadgen: cannot reach " << absl::StrJoin(options.targets, ", ") << " within "
      << absl::FormatDuration(options.connect_timeout) << ": " << status.message()
      << "\nIs the server running, and is --target its address?\n";
  return kExitUnreachable;
}

ExitCode FailToShare(const Options& options, std::ostream& err) {
  err << "attention-loadgen: --shared-memory is on, and " << absl::StrJoin(options.targets, ", ")
      << " does not share memory with this process\nIs the server on this host, and does it have "
         "--shared-memory-listen?\n";
  return kExitUnreachable;
}

// True if the file can be written: known before the run rather than after it. Its contents are left
// alone.
bool CanWrite(const std::string& path, std::ostream& err) {
  const bool exists = access(path.c_str(), F_OK) == 0;
  const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
  if (fd < 0) {
    err << "attention-loadgen: cannot write --json " << path << ": " << std::strerror(errno)
        << "\n";
    return false;
  }
  close(fd);
  if (!exists) unlink(path.c_str());
  return true;
}

void ExplainSetup(const absl::Status& status, std::ostream& err) {
  err << "attention-loadgen: cannot prepare the sessions: "
      << absl::StatusCodeToString(status.code()) << ", reason "
      << client::ErrorReason(status).value_or("(none)") << ": " << status.message() << "\n";
}

// Makes the sessions. False when there is nothing to run: none could be made, or it is no lack of
// room that more patience might mend.
bool Prepare(Driver& driver, const Workload& workload, Collector& collector,
             const RunContext& context) {
  const absl::Status status = driver.Prepare(context.is_interrupted);
  if (status.ok()) return true;
  collector.AddSetupFailure(status);
  ExplainSetup(status, context.err);
  if (!IsRefusal(status)) return false;
  for (int user = 0; user < workload.num_users(); ++user) {
    if (workload.IsReady(user)) return true;
  }
  return false;
}

bool WriteJson(const Report& report, std::ostream& err) {
  std::ofstream file(report.options.json_path);
  // Error messages come from the server and need not be UTF-8.
  file << ToJson(report).dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace)
       << "\n";
  file.close();
  if (file.good()) return true;
  err << "attention-loadgen: cannot write --json " << report.options.json_path << ": "
      << std::strerror(errno) << "\n";
  return false;
}

ExitCode Publish(const Report& report, const RunContext& context) {
  for (const std::string& mismatch : report.verified.mismatches) {
    context.err << "MISMATCH: " << mismatch << "\n";
  }
  if (!report.options.is_quiet) context.out << FormatTable(report) << std::flush;
  if (!report.options.json_path.empty() && !WriteJson(report, context.err)) return kExitFailed;
  return ExitCodeOf(report);
}

}  // namespace

ExitCode Run(const Options& options, const std::shared_ptr<client::Client>& client,
             const RunContext& context) {
  if (!options.json_path.empty() && !CanWrite(options.json_path, context.err)) return kExitUsage;
  if (absl::Status status = WaitForTarget(options, *client, context); !status.ok()) {
    if (context.is_interrupted()) return kExitInterrupted;
    return FailToReach(options, status, context.err);
  }
  if (options.shared_memory == SharedMemory::kOn &&
      client->shared_memory_usage().num_channels == 0) {
    return FailToShare(options, context.err);
  }
  Report report;
  report.options = options;
  report.machine = ReadMachineInfo();
  report.started = absl::Now();
  report.server = AskServer(options, *client);

  const TensorPool pool(options.shape.dtype, LargestTensor(options), options.seed);
  const auto workload = MakeWorkload(options, pool, client);
  Collector collector;
  Verifier verifier(pool, options.verify_fraction, options.seed);
  Driver driver(options, *workload, collector, verifier, context.clock);
  const bool can_run = Prepare(driver, *workload, collector, context);
  {
    Progress progress(options, collector, context.err, context.err_is_terminal);
    if (can_run) {
      report.facts = driver.Run([&](const DriverState& state) {
        progress.Update(state);
        return context.is_interrupted();
      });
    }
    driver.Close();
    report.verified = verifier.Finish([&](std::int64_t left) {
      progress.UpdateVerifying(left);
      return context.is_interrupted();
    });
  }
  report.facts.is_interrupted |= context.is_interrupted();
  report.totals = collector.totals();
  report.shared_memory = client->shared_memory_usage();
  return Publish(report, context);
}

}  // namespace attention::loadgen
