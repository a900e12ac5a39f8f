// Adds flags to an app of CLI11, each with its environment variable and its default.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>

#include "absl/time/time.h"
#include "server/config/byte_size.h"
#include "server/config/environment.h"
#include "server/config/flag_checks.h"

namespace attention::server {

class FlagSet {
 public:
  // `app`, and the values of its flags, must outlive the object.
  explicit FlagSet(CLI::App& app) : app_(app) {}

  template <typename T>
  void Add(const std::string& flag, T& value, const std::string& help,
           const CLI::Validator& check = CLI::Validator()) {
    app_.add_option(flag, value, help)
        ->check(check)
        ->envname(EnvironmentName(flag))
        ->capture_default_str();
  }

  // CLI11 knows no absl::Duration: kept as text, parsed when the option is set.
  void AddDuration(const std::string& flag, absl::Duration& value, const std::string& help,
                   absl::Duration least = absl::Nanoseconds(1)) {
    app_.add_option_function<std::string>(
            flag, [&value](const std::string& text) { absl::ParseDuration(text, &value); }, help)
        ->check(DurationCheck(least))
        ->envname(EnvironmentName(flag))
        ->default_str(absl::FormatDuration(value));
  }

  // CLI11's own suffixes have several meanings.
  void AddBytes(const std::string& flag, std::int64_t& value, const std::string& help,
                const CLI::Validator& check = ByteSizeCheck(0)) {
    app_.add_option_function<std::string>(
            flag, [&value](const std::string& text) { value = ParseByteSize(text).value_or(0); },
            help)
        ->check(check)
        ->envname(EnvironmentName(flag))
        ->default_str(FormatByteSize(value));
  }

  // One value, not CLI11's own kind of list, so that --print-config writes what the file can hold.
  // `set` gets the text once it has been checked.
  void AddList(const std::string& flag, const std::string& default_text, const std::string& help,
               const CLI::Validator& check, std::function<void(const std::string& text)> set) {
    app_.add_option_function<std::string>(flag, std::move(set), help)
        ->check(check)
        ->run_callback_for_default()  // else --print-config leaves an empty one out
        ->envname(EnvironmentName(flag))
        ->default_str(default_text);
  }

 private:
  CLI::App& app_;
};

}  // namespace attention::server
