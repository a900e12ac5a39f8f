#include "attention/client/version.h"

namespace attention::client {

std::string_view Version() { return ATTENTION_CLIENT_VERSION; }

}  // namespace attention::client
