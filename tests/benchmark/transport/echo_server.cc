#include "tests/benchmark/transport/echo_server.h"

#include <unistd.h>

#include <csignal>
#include <cstdio>

namespace attention::bench {
namespace {

void ServeUntilInputEnds(int port) {
  std::printf("%d\n", port);
  std::fflush(stdout);
  char letter = 0;
  while (read(STDIN_FILENO, &letter, 1) > 0) continue;
}

}  // namespace

int RunEchoServer(const EchoSettings& settings, const std::string& unix_path) {
  std::signal(SIGPIPE, SIG_IGN);
  if (settings.api == "cq") return ServeQueues(settings, unix_path, ServeUntilInputEnds);
  if (settings.api == "callback") return ServeCallbacks(settings, unix_path, ServeUntilInputEnds);
  return ServeSockets(settings, unix_path, ServeUntilInputEnds);
}

}  // namespace attention::bench
