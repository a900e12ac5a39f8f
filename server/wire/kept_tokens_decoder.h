// KeptTokens to the domain's.
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "attention/v1/session_service.pb.h"
#include "server/domain/attention_request.h"

namespace attention::server {

// Checks each entry alone, and that no two are about the same head of a layer. INVALID_ARGUMENT
// names the field.
absl::StatusOr<std::vector<KeptTokens>> DecodeKeptTokens(const v1::KeepTokensRequest& wire);

}  // namespace attention::server
