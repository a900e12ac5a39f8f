#include "server/config/environment.h"

#include <algorithm>
#include <cctype>
#include <cstdlib>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "server/config/nearest_name.h"

extern char** environ;

namespace attention::server {
namespace {

constexpr char kEnvironmentPrefix[] = "ATTENTION_";

}  // namespace

std::string EnvironmentName(const std::string& flag) {
  std::string name = kEnvironmentPrefix + flag.substr(2);
  for (char& c : name) c = c == '-' ? '_' : static_cast<char>(std::toupper(c));
  return name;
}

std::vector<std::string> WithEnvironment(const CLI::App& app, std::vector<std::string> arguments) {
  std::vector<std::string> from_environment;
  for (const CLI::Option* option : app.get_options()) {
    const std::string flag = "--" + option->get_single_name();
    const char* value =
        option->get_envname().empty() ? nullptr : std::getenv(option->get_envname().c_str());
    const bool is_given =
        std::any_of(arguments.begin(), arguments.end(), [&](const std::string& argument) {
          return argument == flag || argument.rfind(flag + "=", 0) == 0;
        });
    if (value != nullptr && !is_given) from_environment.push_back(flag + "=" + value);
  }
  arguments.insert(arguments.end(), from_environment.begin(), from_environment.end());
  return arguments;
}

std::string CheckEnvironment(const CLI::App& app, std::vector<std::string>* warnings) {
  std::vector<std::string> known;
  for (const CLI::Option* option : app.get_options()) known.push_back(option->get_envname());
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string name = std::string(*entry).substr(0, std::string(*entry).find('='));
    if (!absl::StartsWith(name, kEnvironmentPrefix) ||
        std::find(known.begin(), known.end(), name) != known.end()) {
      continue;
    }
    const std::string nearest = NearestName(name, known);
    if (!nearest.empty()) {
      return absl::StrCat("environment variable ", name, " is no key of the configuration, ",
                          "did you mean ", nearest);
    }
    warnings->push_back(
        absl::StrCat("environment variable ", name, " is no key of the configuration: ignored"));
  }
  return {};
}

}  // namespace attention::server
