#include "server/domain/row_checksums.h"

#include <xxhash.h>

#include "kernels/api/rows_cursor.h"

namespace attention::server {
namespace {

std::uint32_t Fold(std::uint64_t hash) { return static_cast<std::uint32_t>(hash ^ (hash >> 32)); }

std::uint64_t HashOf(absl::string_view bytes, std::uint64_t seed) {
  return XXH3_64bits_withSeed(bytes.data(), bytes.size(), seed);
}

absl::string_view RowAt(RowsCursor& rows, std::int64_t row, std::int64_t elements) {
  const char* bytes = rows.At(row, 0);
  return {bytes, static_cast<std::size_t>(elements) * DTypeBytes(rows.dtype())};
}

// A part of the format of exported sessions: the numbers stay. Absent rows are float32.
std::uint64_t SeedOf(DType k, DType v) {
  const auto number = [](DType dtype) -> std::uint64_t {
    switch (dtype) {
      case DType::kFloat16:
        return 2;
      case DType::kBFloat16:
        return 3;
      default:
        return 1;
    }
  };
  return number(k) * 16 + number(v);
}

}  // namespace

std::vector<std::uint32_t> ChecksumRows(const StepAppend& append, const KvGeometry& geometry) {
  const std::int64_t k_elements = std::int64_t{geometry.num_kv_heads} * geometry.head_dim_qk;
  const std::int64_t v_elements =
      geometry.value_is_key_prefix ? 0 : std::int64_t{geometry.num_kv_heads} * geometry.head_dim_v;
  RowsCursor k(append.k, append.k_pieces, 0);
  RowsCursor v(append.v, append.v_pieces, 0);
  std::vector<std::uint32_t> checksums;
  checksums.reserve(static_cast<std::size_t>(append.num_tokens));
  for (std::int64_t i = 0; i < append.num_tokens; ++i) {
    const absl::string_view k_row = RowAt(k, i, k_elements);
    const absl::string_view v_row = RowAt(v, i, v_elements);
    checksums.push_back(Fold(HashOf(v_row, HashOf(k_row, SeedOf(k.dtype(), v.dtype())))));
  }
  return checksums;
}

std::vector<std::uint32_t> ChecksumInputs(absl::string_view layer_id, const char* rows,
                                          std::int64_t num_rows, std::int64_t row_bytes) {
  const std::uint64_t layer = HashOf(layer_id, 0);
  std::vector<std::uint32_t> checksums;
  checksums.reserve(static_cast<std::size_t>(num_rows));
  for (std::int64_t i = 0; i < num_rows; ++i) {
    const absl::string_view row(rows + i * row_bytes, static_cast<std::size_t>(row_bytes));
    checksums.push_back(Fold(HashOf(row, layer)));
  }
  return checksums;
}

}  // namespace attention::server
