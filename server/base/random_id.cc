#include "server/base/random_id.h"

#include <sys/random.h>

#include <cstddef>

#include "absl/strings/escaping.h"
#include "absl/strings/string_view.h"

namespace attention::server {
namespace {

void FillAtRandom(char* bytes, std::size_t count) {
  std::size_t filled = 0;
  while (filled < count) {
    const ssize_t drawn = getrandom(bytes + filled, count - filled, 0);
    if (drawn > 0) filled += static_cast<std::size_t>(drawn);
  }
}

}  // namespace

std::string MakeRandomId() {
  char bytes[16];
  FillAtRandom(bytes, sizeof(bytes));
  return absl::BytesToHexString(absl::string_view(bytes, sizeof(bytes)));
}

std::uint64_t MakeRandomNumber() {
  std::uint64_t number = 0;
  while (number == 0) FillAtRandom(reinterpret_cast<char*>(&number), sizeof(number));
  return number;
}

}  // namespace attention::server
