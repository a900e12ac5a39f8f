// Keys of the configuration as environment variables.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

namespace attention::server {

// ATTENTION_KV_PAGE_SIZE of --kv-page-size.
std::string EnvironmentName(const std::string& flag);

// CLI11 lets the file win over the environment. An operator expects the opposite, so variables
// are turned into flags, which win over both, unless the flag itself was given.
std::vector<std::string> WithEnvironment(const CLI::App& app, std::vector<std::string> arguments);

// Says what is wrong, or nothing: a variable whose name is nearly that of a key was meant for it.
// Others are only told of: a cluster sets such variables itself (ATTENTION_SERVICE_HOST of a
// service that is called attention), and so do scripts.
std::string CheckEnvironment(const CLI::App& app, std::vector<std::string>* warnings);

}  // namespace attention::server
