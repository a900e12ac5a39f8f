// attention-loadgen: see README.md in this folder.
#include <unistd.h>

#include <iostream>
#include <string>
#include <vector>

#include "attention/client/client.h"
#include "client/loadgen/interrupt.h"
#include "client/loadgen/options.h"
#include "client/loadgen/run.h"

namespace attention::loadgen {
namespace {

int Main(const std::vector<std::string>& arguments) {
  const ParsedOptions parsed = ParseOptions(arguments);
  if (!parsed.options.has_value()) {
    (parsed.exit_code == 0 ? std::cout : std::cerr) << parsed.message;
    return parsed.exit_code;
  }
  const Options& options = *parsed.options;
  using Use = client::SharedMemoryOptions::Use;
  client::ClientOptions connection = options.connection;
  connection.targets = options.targets;
  connection.default_timeout = options.timeout;
  connection.num_channels = options.channels;
  connection.shared_memory.use =
      options.shared_memory == SharedMemory::kOff ? Use::kOff : Use::kAutomatic;
  const auto client = client::Client::Connect(connection);
  if (!client.ok()) {
    std::cerr << "attention-loadgen: " << client.status().message() << "\n";
    return kExitUsage;
  }
  CatchInterrupts();
  SteadyClock clock;
  return Run(options, *client,
             {.out = std::cout,
              .err = std::cerr,
              .err_is_terminal = isatty(STDERR_FILENO) != 0,
              .is_interrupted = IsInterrupted,
              .clock = clock});
}

}  // namespace
}  // namespace attention::loadgen

int main(int argc, char** argv) {
  return attention::loadgen::Main(std::vector<std::string>(argv + 1, argv + argc));
}
