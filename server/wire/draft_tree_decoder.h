// The tree of a step's drafts from the wire.
#pragma once

#include "absl/status/status.h"
#include "attention/v1/session_service.pb.h"
#include "server/domain/attention_request.h"

namespace attention::server {

// More rows than speculative decoding verifies at once; the bits of so many take 128 KiB.
inline constexpr std::int64_t kMaxDraftRows = 1024;

// Checks the tree of a step whose rows are decoded, and gives it to the step. Does nothing if there
// is none. INVALID_ARGUMENT names the field.
absl::Status DecodeDraftTree(const v1::SessionStep& wire, SessionStep* step);

}  // namespace attention::server
