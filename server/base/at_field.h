// The path of a wrong field, put together on the way from where it was found to the request.
#pragma once

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace attention::server {

// The same error, its message behind "field.": "dim is 3" becomes "rotary.dim is 3". OK stays OK.
absl::Status AtField(absl::string_view field, const absl::Status& status);

}  // namespace attention::server
