// The flags by which every program here says how its client connects: TLS, token, tenant, metadata.
#pragma once

#include <CLI/CLI.hpp>
#include <optional>

#include "attention/client/options.h"

namespace attention::client {

// Flags that set `options`, which must live until the command line is parsed. There is none for a
// token: a command line can be read by everybody on the machine.
void AddConnectionFlags(CLI::App& app, ClientOptions* options);

// The options of a program that has no other flags but --target and --version. Nullopt: help, the
// version or a mistake was printed, and the program ends with *exit_code.
std::optional<ClientOptions> ParseConnection(int argc, char** argv, const char* program,
                                             const char* about, int* exit_code);

}  // namespace attention::client
