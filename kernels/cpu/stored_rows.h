// Rows of packed pages (packed_layout.h) read, written and moved as they are stored, on the threads
// of a pool. The tasks are valid.
//
// Thread-safety: one call at a time for each pool, which the calling thread owns.
#pragma once

#include <span>

#include "kernels/api/stored_rows.h"
#include "kernels/base/thread_pool.h"

namespace attention::cpu {

void ReadStoredRows(std::span<const StoredRowsTask> tasks, ThreadPool& pool);
void WriteStoredRows(std::span<const StoredRowsTask> tasks, ThreadPool& pool);
void MoveStoredTokens(std::span<const MoveTokensTask> tasks, ThreadPool& pool);

}  // namespace attention::cpu
