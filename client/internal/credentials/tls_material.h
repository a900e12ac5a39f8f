// The PEM of a client's TlsOptions, read and checked: gRPC would say of a fault in it only that
// there is no connection.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "attention/client/credentials.h"

namespace attention::client::internal {

// PEM; empty where nothing is given.
struct TlsMaterial {
  std::string ca;
  std::string certificate;
  std::string key;
};

// INVALID_ARGUMENT names the option that is given twice or lacks its fellow, the file that cannot
// be read, or the PEM that is none of its kind; or says that the key is another certificate's.
absl::StatusOr<TlsMaterial> ReadTlsMaterial(const TlsOptions& options);

}  // namespace attention::client::internal
