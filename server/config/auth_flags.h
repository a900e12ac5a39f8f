// The flags that say who may call.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "server/config/flag_set.h"
#include "server/config/server_config.h"

namespace attention::server {

void AddAuth(FlagSet& flags, ServerConfig& config);

// Says what is wrong, or nothing: flags that need another one.
std::string CheckAuth(const ServerConfig& config);

// The value of --new-token: "acme" or "ops=admin".
CLI::Validator NewTokenCheck();
// A new token and its line for the file of tokens, a line each.
std::string NewTokenText(const std::string& text);

}  // namespace attention::server
