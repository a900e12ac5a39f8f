// The metadata by which servers know a client: its token, its tenant, and what the program adds.
#pragma once

#include <grpcpp/client_context.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "attention/client/options.h"
#include "client/internal/credentials/token_source.h"

namespace attention::client::internal {

// Thread-safe.
class Identity {
 public:
  // `options` have passed CheckIdentity.
  explicit Identity(const ClientOptions& options);

  // Adds the metadata of one attempt. Not OK: the attempt must not be made, as there is no token.
  absl::Status AddTo(grpc::ClientContext* context) const;

  // Nullopt: servers decide.
  const std::optional<std::string>& tenant() const { return tenant_; }
  // Null without a token.
  TokenSource* token() const { return token_.get(); }

 private:
  const std::optional<std::string> tenant_;
  const std::vector<std::pair<std::string, std::string>> metadata_;
  const std::shared_ptr<TokenSource> token_;
};

// INVALID_ARGUMENT names the option of tenant, token or metadata that is wrong, or that would send
// a token in the clear.
absl::Status CheckIdentity(const ClientOptions& options);

}  // namespace attention::client::internal
