// The rules that options obey, apart from how they are written on a command line.
#pragma once

#include <functional>
#include <string>

#include "absl/status/status.h"
#include "client/loadgen/options.h"

namespace attention::loadgen {

// True if the command line has a flag such as "--rate".
using GivenFlags = std::function<bool(const std::string& flag)>;

// INVALID_ARGUMENT names the first flag that is wrong, its value and what is expected; a flag that
// would have no effect is a mistake too.
absl::Status CheckOptions(const Options& options, const GivenFlags& given);

}  // namespace attention::loadgen
