#include "tests/benchmark/transport/attention_process.h"

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "tests/benchmark/transport/studies.h"

namespace attention::bench {
namespace {

constexpr double kStartSeconds = 30;

// The addresses that the server listens on, once it does.
std::vector<std::string> AwaitAddresses(const ChildProcess& process, const std::string& path) {
  const double deadline = Now() + kStartSeconds;
  while (!std::filesystem::exists(path)) {
    if (!process.IsRunning() || Now() > deadline) {
      std::fprintf(stderr, "attention-server did not start\n");
      std::exit(1);
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  std::ifstream file(path);
  return nlohmann::json::parse(file).at("listen").get<std::vector<std::string>>();
}

AttentionProcess::Connection Open(const std::string& target) {
  auto channel = Connect(target, ChosenSettings());
  auto caller = MakeGrpcCaller(channel);
  return {std::move(channel), std::move(caller)};
}

}  // namespace

// Small pages: a step of the first tokens of a session should not pay for fresh pages of 64.
AttentionProcess::AttentionProcess(const std::string& binary, const std::string& backend,
                                   const std::string& folder)
    : ports_path_(folder + "/ports.json"),
      process_(
          {binary, "--backend=" + backend, "--listen=127.0.0.1:0,unix:" + folder + "/server.sock",
           "--shared-memory-listen=unix:" + folder + "/shared-memory.sock",
           "--admin-listen=127.0.0.1:0", "--port-file=" + ports_path_, "--kv-page-size=16",
           "--kv-capacity-bytes=1073741824", "--log-level=warn"},
          {}) {
  const std::vector<std::string> addresses = AwaitAddresses(process_, ports_path_);
  tcp_ = Open(addresses.at(0));
  unix_socket_ = Open(addresses.at(1));
  channel_path_ = folder + "/shared-memory.sock";
}

}  // namespace attention::bench
