// Finds the existing name that may have been meant by one that does not exist.
#pragma once

#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace attention::server {

// The known name that differs by the fewest letters added, dropped, changed or swapped with their
// neighbour; empty when all differ by more than two.
std::string NearestName(absl::string_view name, const std::vector<std::string>& known);

}  // namespace attention::server
