// Servers that move bytes and do nothing else: what the transport alone costs.
#pragma once

#include <string>

#include "tests/benchmark/transport/settings.h"

namespace attention::bench {

// Serves AttentionService's Attend and AttendStream by EchoAnswer, or the same over bare sockets,
// on a free port of 127.0.0.1 and on `unix_path`. Prints the port, then serves until standard input
// ends. For a process of its own. Returns the exit code.
int RunEchoServer(const EchoSettings& settings, const std::string& unix_path);

// The three kinds. Each calls `on_started(port)` and returns when that does.
int ServeQueues(const EchoSettings& settings, const std::string& unix_path,
                void (*on_started)(int port));
int ServeCallbacks(const EchoSettings& settings, const std::string& unix_path,
                   void (*on_started)(int port));
int ServeSockets(const EchoSettings& settings, const std::string& unix_path,
                 void (*on_started)(int port));

}  // namespace attention::bench
