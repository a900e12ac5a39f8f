// The SDK's version.
#pragma once

#include <string_view>

namespace attention::client {

// "1.2.3": of the library that is linked.
std::string_view Version();

}  // namespace attention::client
