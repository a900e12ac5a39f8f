#include "server/port_file.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"

namespace attention::server {
namespace {

absl::Status CannotWrite(const std::string& path, const std::string& temporary) {
  const int error = errno;
  std::remove(temporary.c_str());
  return absl::UnavailableError(
      absl::StrCat("port-file: cannot write ", path, ": ", std::strerror(error)));
}

}  // namespace

absl::Status WritePortFile(const std::string& path, const std::vector<std::string>& addresses,
                           const std::string& admin_address) {
  if (path.empty()) return absl::OkStatus();
  const std::string temporary = path + ".tmp";
  {
    std::ofstream file(temporary);
    file << nlohmann::json{{"listen", addresses}, {"admin_listen", admin_address}} << "\n";
    if (!file.flush()) return CannotWrite(temporary, temporary);
  }
  if (std::rename(temporary.c_str(), path.c_str()) == 0) return absl::OkStatus();
  return CannotWrite(path, temporary);
}

}  // namespace attention::server
