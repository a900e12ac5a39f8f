// Rows of the CUDA backend's pages (contract/page_layout.h) read, written and moved as they are
// stored, on copies of the pages in the host's memory. They travel over the bus whole, so this is
// for sessions that move, and not for every step.
//
// Thread-safety: as the backend's.
#pragma once

#include <span>

#include "absl/status/status.h"
#include "kernels/api/attention_backend.h"

namespace attention::cuda {

// The tasks are valid. Errors are those of SavePages and RestorePages.
absl::Status ReadStoredRows(AttentionBackend& backend, std::span<const StoredRowsTask> tasks);
absl::Status WriteStoredRows(AttentionBackend& backend, std::span<const StoredRowsTask> tasks);
absl::Status MoveStoredTokens(AttentionBackend& backend, std::span<const MoveTokensTask> tasks);

}  // namespace attention::cuda
