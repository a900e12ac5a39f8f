// The configuration file: TOML, as toml++ reads it, in the place of CLI11's own reader, which takes
// much that is not TOML and names no line.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace attention::server {

class TomlFile final : public CLI::ConfigTOML {
 public:
  explicit TomlFile(const CLI::App& app) : app_(app) {}

  // Throws CLI::ConfigError with the file, the line and what was expected.
  std::vector<CLI::ConfigItem> from_config(std::istream& input) const override;

  // The place where the file sets the key: " (FILE, line N)"; empty where it does not.
  std::string PlaceOf(const std::string& key) const;

 private:
  std::string Path() const;

  const CLI::App& app_;
  mutable std::map<std::string, std::uint32_t> lines_;  // by key
};

}  // namespace attention::server
