#include "tests/support/server_process.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "kernels/base/check.h"

extern char** environ;

namespace attention::testing {
namespace {

std::string MakeDirectory() {
  std::string name = ::testing::TempDir() + "attention-server-XXXXXX";
  ATTENTION_CHECK(mkdtemp(name.data()) != nullptr);
  return name;
}

std::string ReadFile(const std::string& path) {
  std::ostringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

}  // namespace

pid_t Spawn(const std::vector<std::string>& arguments, const std::string& log) {
  std::vector<char*> argv;
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, log.c_str(),
                                   O_WRONLY | O_CREAT | O_APPEND, 0600);
  posix_spawn_file_actions_adddup2(&actions, STDOUT_FILENO, STDERR_FILENO);
  pid_t pid = -1;
  const int error = posix_spawn(&pid, argv[0], &actions, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  ATTENTION_CHECK(error == 0);
  return pid;
}

ServerProcess::ServerProcess(const std::vector<std::string>& flags, const std::string& limits)
    : directory_(MakeDirectory()) {
  std::vector<std::string> arguments = {ATTENTION_SERVER_BINARY,
                                        "--listen=127.0.0.1:0",
                                        "--admin-listen=127.0.0.1:0",
                                        "--port-file=" + directory_ + "/ports.json",
                                        "--threads=2",
                                        "--kv-capacity-bytes=67108864"};
  // A flag given twice is an error, so what the test sets replaces the default here.
  for (const std::string& flag : flags) {
    const std::string name = flag.substr(0, flag.find('=') + 1);
    std::erase_if(arguments, [&](const std::string& argument) {
      return !name.empty() && argument.rfind(name, 0) == 0;
    });
    arguments.push_back(flag);
  }
  if (!limits.empty()) {
    const std::string script = limits + R"( && exec "$0" "$@")";
    arguments.insert(arguments.begin(), {"/bin/sh", "-c", script});
  }
  pid_ = Spawn(arguments, directory_ + "/log");
}

ServerProcess::~ServerProcess() {
  if (!WaitForExit(absl::ZeroDuration())) {
    Signal(SIGKILL);
    WaitForExit();
  }
  std::filesystem::remove_all(directory_);
}

bool ServerProcess::HasPorts() { return std::filesystem::exists(directory_ + "/ports.json"); }

ServerClient& ServerProcess::client() {
  if (client_ != nullptr) return *client_;
  WaitUntil([&] { return HasPorts() || WaitForExit(absl::ZeroDuration()).has_value(); });
  if (!HasPorts()) {
    ADD_FAILURE() << "the server did not come up: " << Log();
    client_ = std::make_unique<ServerClient>("127.0.0.1:1", "127.0.0.1:1");
    return *client_;
  }
  const auto ports = nlohmann::json::parse(ReadFile(directory_ + "/ports.json"));
  addresses_ = ports.at("listen").get<std::vector<std::string>>();
  client_ = std::make_unique<ServerClient>(addresses_.front(),
                                           ports.at("admin_listen").get<std::string>());
  return *client_;
}

void ServerProcess::Signal(int signal) { kill(pid_, signal); }

std::optional<int> ServerProcess::WaitForExit(absl::Duration timeout) {
  const auto has_ended = [this] {
    int status = 0;
    if (!exit_ && waitpid(pid_, &status, WNOHANG) == pid_) {
      exit_ = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
    }
    return exit_.has_value();
  };
  WaitUntil(has_ended, timeout);
  return exit_;
}

std::int64_t ServerProcess::ResidentBytes() const {
  std::istringstream statm(ReadFile("/proc/" + std::to_string(pid_) + "/statm"));
  std::int64_t all = 0, resident = 0;
  statm >> all >> resident;
  return resident * sysconf(_SC_PAGESIZE);
}

std::string ServerProcess::Log() const { return ReadFile(directory_ + "/log"); }

}  // namespace attention::testing
