// A JSON document that remembers on which line each of its keys is.
#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace attention::server {

class JsonLines {
 public:
  // INVALID_ARGUMENT, with `name` and the line, for what is no JSON and for a key that is there
  // twice.
  static absl::StatusOr<JsonLines> Parse(const std::string& name, const std::string& text);

  const nlohmann::json& root() const { return root_; }

  // "NAME:LINE: PATH MESSAGE", where paths are as in "layers[0].rotary.dim". The line is that of
  // the nearest part of the path that the document has.
  absl::Status Invalid(const std::string& path, const std::string& message) const;

 private:
  std::string name_;
  nlohmann::json root_;
  std::map<std::string, int> lines_;  // of each key and each object in a list
};

}  // namespace attention::server
