// Archives of sessions: how a session's rows are cut into chunks, and how chunks are checked.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "attention/v1/session_service.pb.h"
#include "server/domain/attention_request.h"
#include "server/domain/cache_shape.h"

namespace attention::server {

// The number of the format that this server writes and reads.
inline constexpr int kArchiveFormat = 1;

// Cuts the tokens that layers hold into chunks. Which they are depends on the shape and the numbers
// alone.
class ArchivePlan {
 public:
  // num_held: of each layer.
  ArchivePlan(const CacheShape& shape, const std::vector<std::int64_t>& num_held);

  std::int64_t num_chunks() const { return first_chunks_.back(); }

  struct Chunk {
    int layer = 0;
    std::int64_t begin = 0;
    std::int64_t num_tokens = 0;
  };
  // `index`: 0 to num_chunks() - 1.
  Chunk ChunkAt(std::int64_t index) const;

 private:
  std::vector<std::int64_t> num_held_;
  std::vector<std::int64_t> chunk_tokens_;  // of each layer's chunks
  std::vector<std::int64_t> first_chunks_;  // of each layer; then their number
};

// A chunk without rows, which get the room that they need.
v1::ArchiveChunk MakeChunk(std::int64_t index, const ArchivePlan::Chunk& chunk,
                           const KvGeometry& geometry);
// The rows in a chunk. They are written and read where they lie.
StoredRows RowsOf(v1::ArchiveChunk& chunk, const KvGeometry& geometry);
// Adds the checksums of the rows, and then the chunk's own.
void Seal(const std::vector<std::uint32_t>& row_checksums, std::uint64_t archive_id,
          v1::ArchiveChunk* chunk);

// INVALID_ARGUMENT names the field that is not what the plan says of the chunk `index`, which is to
// come; DATA_LOSS: its checksum does not fit.
absl::Status CheckChunk(const v1::ArchiveChunk& wire, const ArchivePlan& plan, std::int64_t index,
                        const CacheShape& shape, std::uint64_t archive_id);
std::vector<std::uint32_t> RowChecksumsOf(const v1::ArchiveChunk& chunk);

// Both: INVALID_ARGUMENT names the field. `num_layers` is that of the description's geometry, of
// which nothing else need be known to be right.
absl::Status CheckTokens(const v1::SessionArchive& wire, int num_layers);
// `shape`: of a cache that has been made; any other may divide by zero.
absl::Status CheckNumChunks(const v1::SessionArchive& wire, const CacheShape& shape);
std::vector<std::int64_t> NumHeldOf(const v1::SessionArchive& wire);

}  // namespace attention::server
