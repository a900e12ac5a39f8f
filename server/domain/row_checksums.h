// Checksums of the rows that a step brings, by which a step that was applied before is told from
// one that brings other rows for the same positions. XXH3 of rows and types: the same in every
// server, since sessions move between them. A rival could make rows that collide; only its own
// session would hold them.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/strings/string_view.h"
#include "kernels/api/paged_kv_view.h"
#include "server/domain/attention_request.h"

namespace attention::server {

// One for each token, of its rows of k and, if there are, v: type and bytes as they came. The rows
// are dense.
std::vector<std::uint32_t> ChecksumRows(const StepAppend& append, const KvGeometry& geometry);

// The same of rows that become keys and values by a layer of this id: one for each of `num_rows`
// rows of `row_bytes` bytes. They differ from those of rows that come as keys and values
// themselves.
std::vector<std::uint32_t> ChecksumInputs(absl::string_view layer_id, const char* rows,
                                          std::int64_t num_rows, std::int64_t row_bytes);

}  // namespace attention::server
