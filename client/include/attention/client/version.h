// The SDK's version.
#ifndef ATTENTION_CLIENT_VERSION_H_
#define ATTENTION_CLIENT_VERSION_H_

#include <string_view>

namespace attention::client {

// "1.2.3": of the library that is linked.
std::string_view Version();

}  // namespace attention::client

#endif  // ATTENTION_CLIENT_VERSION_H_
