#include "server/wire/session_archive.h"

#include <xxhash.h>

#include <algorithm>
#include <cstring>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "kernels/api/stored_rows.h"
#include "kernels/base/divide.h"

namespace attention::server {
namespace {

// Large enough that a chunk's own costs are little, and small enough for the message size that
// clients have by default, 4 MiB.
constexpr std::int64_t kChunkBytes = std::int64_t{1} << 20;

std::int64_t ChunkTokens(const KvGeometry& geometry) {
  const auto granule_bytes =
      static_cast<std::int64_t>(StoredRowsLayout::Of(geometry, kPageGranularity).bytes);
  return std::max<std::int64_t>(1, kChunkBytes / granule_bytes) * kPageGranularity;
}

std::uint64_t ChecksumOf(const v1::ArchiveChunk& chunk, std::uint64_t archive_id) {
  const std::uint64_t place[] = {archive_id, static_cast<std::uint64_t>(chunk.index()),
                                 static_cast<std::uint64_t>(chunk.layer()),
                                 static_cast<std::uint64_t>(chunk.begin()),
                                 static_cast<std::uint64_t>(chunk.num_tokens())};
  std::uint64_t hash = XXH3_64bits(place, sizeof(place));
  hash = XXH3_64bits_withSeed(chunk.row_checksums().data(), chunk.row_checksums().size(), hash);
  return XXH3_64bits_withSeed(chunk.rows().data(), chunk.rows().size(), hash);
}

absl::Status Expect(absl::string_view field, std::int64_t actual, std::int64_t expected) {
  if (actual == expected) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(field, " is ", actual, ", expected ", expected));
}

}  // namespace

ArchivePlan::ArchivePlan(const CacheShape& shape, const std::vector<std::int64_t>& num_held)
    : num_held_(num_held), first_chunks_{0} {
  for (int layer = 0; layer < shape.num_layers(); ++layer) {
    chunk_tokens_.push_back(ChunkTokens(shape.layer(layer).geometry));
    first_chunks_.push_back(first_chunks_.back() + CeilDiv(num_held[layer], chunk_tokens_.back()));
  }
}

ArchivePlan::Chunk ArchivePlan::ChunkAt(std::int64_t index) const {
  const auto after = std::upper_bound(first_chunks_.begin(), first_chunks_.end(), index);
  const auto layer = std::distance(first_chunks_.begin(), after) - 1;
  const std::int64_t begin = (index - first_chunks_[layer]) * chunk_tokens_[layer];
  return {static_cast<int>(layer), begin, std::min(chunk_tokens_[layer], num_held_[layer] - begin)};
}

v1::ArchiveChunk MakeChunk(std::int64_t index, const ArchivePlan::Chunk& chunk,
                           const KvGeometry& geometry) {
  v1::ArchiveChunk made;
  made.set_index(index);
  made.set_layer(chunk.layer);
  made.set_begin(chunk.begin);
  made.set_num_tokens(chunk.num_tokens);
  made.mutable_rows()->resize(StoredRowsLayout::Of(geometry, chunk.num_tokens).bytes);
  return made;
}

StoredRows RowsOf(v1::ArchiveChunk& chunk, const KvGeometry& geometry) {
  return StoredRowsIn(geometry, chunk.num_tokens(),
                      reinterpret_cast<std::byte*>(chunk.mutable_rows()->data()));
}

void Seal(const std::vector<std::uint32_t>& row_checksums, std::uint64_t archive_id,
          v1::ArchiveChunk* chunk) {
  chunk->set_row_checksums(row_checksums.data(), row_checksums.size() * sizeof(std::uint32_t));
  chunk->set_checksum(ChecksumOf(*chunk, archive_id));
}

absl::Status CheckChunk(const v1::ArchiveChunk& wire, const ArchivePlan& plan, std::int64_t index,
                        const CacheShape& shape, std::uint64_t archive_id) {
  if (index == plan.num_chunks()) {
    return absl::InvalidArgumentError(absl::StrCat("chunk.index is ", wire.index(),
                                                   ", expected none any more: all ", index,
                                                   " chunks are there"));
  }
  const ArchivePlan::Chunk chunk = plan.ChunkAt(index);
  const auto num_bytes = static_cast<std::int64_t>(
      StoredRowsLayout::Of(shape.layer(chunk.layer).geometry, chunk.num_tokens).bytes);
  const auto checksum_bytes = chunk.num_tokens * static_cast<std::int64_t>(sizeof(std::uint32_t));
  for (const absl::Status& status :
       {Expect("chunk.index", wire.index(), index),
        Expect("chunk.layer", wire.layer(), chunk.layer),
        Expect("chunk.begin", wire.begin(), chunk.begin),
        Expect("chunk.num_tokens", wire.num_tokens(), chunk.num_tokens),
        Expect("the size of chunk.rows", std::ssize(wire.rows()), num_bytes),
        Expect("the size of chunk.row_checksums", std::ssize(wire.row_checksums()),
               checksum_bytes)}) {
    if (!status.ok()) return status;
  }
  if (wire.checksum() == ChecksumOf(wire, archive_id)) return absl::OkStatus();
  return absl::DataLossError(
      absl::StrCat("chunk ", index,
                   " does not have the rows that chunk.checksum is of: it was damaged, or is of "
                   "another archive"));
}

std::vector<std::uint32_t> RowChecksumsOf(const v1::ArchiveChunk& chunk) {
  std::vector<std::uint32_t> checksums(static_cast<std::size_t>(chunk.num_tokens()));
  std::memcpy(checksums.data(), chunk.row_checksums().data(), chunk.row_checksums().size());
  return checksums;
}

absl::Status CheckTokens(const v1::SessionArchive& wire, int num_layers) {
  if (wire.length() < 0 || wire.length() > kMaxPosition) {
    return absl::InvalidArgumentError(
        absl::StrCat("archive.length is ", wire.length(), ", expected 0 to ", kMaxPosition));
  }
  if (wire.layers_size() != num_layers) {
    return Expect("the number of archive.layers", wire.layers_size(), num_layers);
  }
  for (int layer = 0; layer < wire.layers_size(); ++layer) {
    const v1::ArchivedLayer& tokens = wire.layers(layer);
    const std::string field = absl::StrCat("archive.layers[", layer, "]");
    if (tokens.num_tokens() < 0 || tokens.num_tokens() > wire.length()) {
      return absl::InvalidArgumentError(absl::StrCat(field, ".num_tokens is ", tokens.num_tokens(),
                                                     ", expected 0 to ", wire.length()));
    }
    const std::int64_t least = wire.length() - tokens.num_tokens();
    if (tokens.compacted_length() < least || tokens.compacted_length() > wire.length()) {
      return absl::InvalidArgumentError(absl::StrCat(field, ".compacted_length is ",
                                                     tokens.compacted_length(), ", expected ",
                                                     least, " to ", wire.length()));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckNumChunks(const v1::SessionArchive& wire, const CacheShape& shape) {
  return Expect("archive.num_chunks", wire.num_chunks(),
                ArchivePlan(shape, NumHeldOf(wire)).num_chunks());
}

std::vector<std::int64_t> NumHeldOf(const v1::SessionArchive& wire) {
  std::vector<std::int64_t> num_held;
  for (const v1::ArchivedLayer& layer : wire.layers()) num_held.push_back(layer.num_tokens());
  return num_held;
}

}  // namespace attention::server
