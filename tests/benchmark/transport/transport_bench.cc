// attention-bench-transport: what the wire costs, beside what gRPC and bare sockets cost alone.
//
// Servers run in processes of their own; one client, which encodes nothing, serves all contenders,
// which take turns within one run, because a shared machine does not keep its speed.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "absl/synchronization/mutex.h"
#include "tests/benchmark/transport/child_process.h"
#include "tests/benchmark/transport/echo_server.h"
#include "tests/benchmark/transport/process_memory.h"
#include "tests/benchmark/transport/studies.h"

namespace attention::bench {
namespace {

// This program again, as an echo server: --serve SETTINGS UNIX_PATH.
int Serve(const std::string& text, const std::string& unix_path) {
  const EchoSettings settings = nlohmann::json::parse(text).get<EchoSettings>();
  if (!SetUpMemory(settings.memory)) {
    std::fprintf(stderr, "the allocator refused its settings\n");
    return 1;
  }
  return RunEchoServer(settings, unix_path);
}

int Main(int argc, char** argv) {
  if (argc == 4 && std::string(argv[1]) == "--serve") return Serve(argv[2], argv[3]);
  StudyOptions options;
  std::string json_path, study = "server";
  options.server_binary = (std::filesystem::path(OwnPath()).parent_path() / "attention-server");
  CLI::App app("Measures the transport: the server's own path beside echoes of the same bytes.");
  app.add_option("--study", study, "What to compare: README.md in this program's folder tells")
      ->check(CLI::IsMember({"server", "shared-memory", "apis", "settings"}))
      ->capture_default_str();
  app.add_option("--server", options.server_binary, "attention-server's file")
      ->capture_default_str();
  app.add_option("--backend", options.backend, "Of the server")
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->capture_default_str();
  app.add_option("--json", json_path, "Write one record per contender and exchange to this file");
  app.add_option("--filter", options.filter, "Only exchanges whose NAME/TRANSPORT contains this");
  app.add_option("--seconds", options.contest.seconds, "Of each turn; a round has two a contender")
      ->check(CLI::PositiveNumber);
  app.add_option("--rounds", options.contest.rounds)->check(CLI::PositiveNumber);
  app.add_flag("--quick", options.is_quick, "Leave out what exceeds 1 MiB");
  app.set_version_flag("--version", "attention-bench-transport " ATTENTION_VERSION);
  CLI11_PARSE(app, argc, argv);
  SetUpMemory(Memory::kKeep);
  const auto run = study == "server"          ? StudyServer
                   : study == "shared-memory" ? StudySharedMemory
                   : study == "apis"          ? StudyApis
                                              : StudySettings;
  const std::vector<Figures> figures = run(options);
  if (json_path.empty()) return 0;
  std::ofstream file(json_path);
  file << nlohmann::json{{"study", study}, {"records", figures}}.dump(2) << "\n";
  return file.good() ? 0 : 1;
}

}  // namespace
}  // namespace attention::bench

int main(int argc, char** argv) {
  // As the server does: neither side pays for Abseil's search for lock cycles.
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
  return attention::bench::Main(argc, argv);
}
