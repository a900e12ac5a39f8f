// The PEM files of a listener, checked before gRPC gets them: it would say of any fault only that
// the server cannot be built.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/listener/listener.h"

namespace attention::server {

struct TlsFiles {
  std::string certificate;  // with its chain
  std::string key;
  std::string client_ca;  // empty: clients need no certificate
};

// INVALID_ARGUMENT names the setting and the file that cannot be read, holds no PEM of its kind,
// has expired, or does not fit the other.
absl::StatusOr<TlsFiles> ReadTlsFiles(const Listener& listener, absl::Time now);

}  // namespace attention::server
