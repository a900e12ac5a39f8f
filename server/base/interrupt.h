// Tells work that takes long that nobody wants it any more.
#pragma once

#include <functional>

#include "absl/status/status.h"

namespace attention::server {

// Asked now and then by the work, which ends with the error that it gets. Null: never ends early.
using Interrupt = std::function<absl::Status()>;

inline absl::Status Ask(const Interrupt& interrupt) {
  return interrupt ? interrupt() : absl::OkStatus();
}

}  // namespace attention::server
