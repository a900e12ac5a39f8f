#include "server/config/toml_file.h"

#include <toml++/toml.h>

#include <algorithm>
#include <istream>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "server/config/nearest_name.h"

namespace attention::server {
namespace {

CLI::ConfigError Error(const std::string& path, std::uint32_t line, const std::string& what) {
  return CLI::ConfigError(absl::StrCat(path, ", line ", line, ": ", what));
}

bool IsScalar(const toml::node& node) {
  return node.is_string() || node.is_integer() || node.is_floating_point() || node.is_boolean();
}

std::string TextOf(const toml::node& node) {
  if (node.is_string()) return node.as_string()->get();
  std::ostringstream text;
  node.visit([&](const auto& value) { text << value; });
  return text.str();
}

// A scalar, or a list of them, which is one value with commas here.
std::string ValueOf(const std::string& path, const std::string& key, const toml::node& node) {
  const std::uint32_t line = node.source().begin.line;
  if (IsScalar(node)) return TextOf(node);
  std::vector<std::string> parts;
  if (const toml::array* array = node.as_array()) {
    for (const toml::node& element : *array) {
      if (IsScalar(element)) parts.push_back(TextOf(element));
    }
    if (parts.size() == array->size()) return absl::StrJoin(parts, ",");
  }
  throw Error(path, line, absl::StrCat(key, " is no string, number or list of them"));
}

}  // namespace

std::string TomlFile::Path() const { return app_.get_config_ptr()->as<std::string>(); }

std::vector<CLI::ConfigItem> TomlFile::from_config(std::istream& input) const {
  const std::string path = Path();
  std::vector<std::string> known;
  for (const CLI::Option* option : app_.get_options()) {
    if (option->get_configurable()) known.push_back(option->get_single_name());
  }
  std::vector<CLI::ConfigItem> items;
  try {
    const toml::table table = toml::parse(input, path);
    for (const auto& [name, node] : table) {
      const std::string key(name.str());
      const std::uint32_t line = node.source().begin.line;
      if (std::find(known.begin(), known.end(), key) == known.end()) {
        const std::string nearest = NearestName(key, known);
        throw Error(path, line,
                    absl::StrCat(key, " is no key of the configuration",
                                 nearest.empty() ? "" : absl::StrCat(", did you mean ", nearest)));
      }
      lines_[key] = line;
      CLI::ConfigItem& item = items.emplace_back();
      item.name = key;
      item.inputs = {ValueOf(path, key, node)};
    }
  } catch (const toml::parse_error& error) {
    throw Error(path, error.source().begin.line,
                absl::StrCat("this is no TOML: ", std::string(error.description())));
  }
  return items;
}

std::string TomlFile::PlaceOf(const std::string& key) const {
  const auto line = lines_.find(key);
  if (line == lines_.end()) return "";
  return absl::StrCat(" (", Path(), ", line ", line->second, ")");
}

}  // namespace attention::server
