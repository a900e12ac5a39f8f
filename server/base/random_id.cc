#include "server/base/random_id.h"

#include <sys/random.h>

#include <cstddef>

#include "absl/strings/escaping.h"
#include "absl/strings/string_view.h"

namespace attention::server {

std::string MakeRandomId() {
  char bytes[16];
  std::size_t filled = 0;
  while (filled < sizeof(bytes)) {
    const ssize_t count = getrandom(bytes + filled, sizeof(bytes) - filled, 0);
    if (count > 0) filled += static_cast<std::size_t>(count);
  }
  return absl::BytesToHexString(absl::string_view(bytes, sizeof(bytes)));
}

}  // namespace attention::server
