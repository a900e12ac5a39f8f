#include "tests/support/quantized_pages.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernels/api/quantized_row.h"

namespace attention::testing {
namespace {

constexpr int kHeads = 2;
constexpr int kDims[] = {37, 80};  // of keys and of values
constexpr std::int64_t kPageSize = 32;
constexpr int kTokens = 60;
constexpr int kFirst = 5;  // position of the first token

// The middle between two neighbours of float8_e4m3, or right beside it.
float NearlyTied(std::mt19937& random) {
  const auto byte = static_cast<std::uint8_t>(random() % 0x7e);
  const float low = Float8E4M3ToFloat(byte);
  const float high = Float8E4M3ToFloat(static_cast<std::uint8_t>(byte + 1));
  const float middle = (low + high) / 2;
  const float values[] = {middle, std::nextafter(middle, 0.0f), std::nextafter(middle, 1e9f), high};
  const float value = values[random() % 4];
  return random() % 2 == 0 ? value : -value;
}

// Row `index` of the kinds of rows there are.
void FillHardRow(int index, std::mt19937& random, int dim, float* row) {
  std::normal_distribution<float> normal;
  for (int i = 0; i < dim; ++i) row[i] = normal(random);
  float& one = row[random() % dim];
  const auto shift = [&](int exponent) {
    for (int i = 0; i < dim; ++i) row[i] = std::ldexp(row[i], exponent);
  };
  switch (index % 10) {
    case 0:
      break;
    case 1:
      one *= 300;
      break;
    case 2:  // ties of the values, at one scale or another
    case 3:
      for (int i = 0; i < dim; ++i) row[i] = NearlyTied(random);
      one = 448;
      shift(index % 10 == 2 ? 0 : static_cast<int>(random() % 20) - 10);
      break;
    case 4:
      for (int i = 0; i < dim; ++i) row[i] = i % 2 == 0 ? 0.0f : -0.0f;
      break;
    case 5:
      shift(-115);
      break;
    case 6:
      one = index % 20 == 6 ? std::numeric_limits<float>::quiet_NaN()
                            : -std::numeric_limits<float>::infinity();
      break;
    case 7:
      one = std::numeric_limits<float>::max();
      break;
    case 8:
      shift(-140);
      one = 1;
      break;
    case 9:
      shift(static_cast<int>(random() % 60) - 30);
      break;
  }
}

// [kTokens, kHeads, dim] of `dtype`.
std::vector<std::uint8_t> HardRows(DType dtype, int dim, std::mt19937& random) {
  std::vector<std::uint8_t> rows(kTokens * kHeads * dim * DTypeBytes(dtype));
  std::vector<float> row(dim);
  for (int i = 0; i < kTokens * kHeads; ++i) {
    FillHardRow(i, random, dim, row.data());
    for (int j = 0; j < dim; ++j) StoreElement(rows.data(), dtype, i * dim + j, row[j]);
  }
  return rows;
}

void ExpectRow(const PageReader& reader, DType dtype, const StoredRow& stored,
               const std::vector<float>& row) {
  float max = 0;
  bool is_finite = true;
  for (float x : row) {
    is_finite = is_finite && std::isfinite(x);
    max = std::fmax(max, std::abs(x));
  }
  const RowScale scale =
      RowScale::Of(dtype, is_finite ? max : std::numeric_limits<float>::infinity());
  const float actual = reader.scale(stored);
  ASSERT_TRUE(actual == scale.scale || (std::isnan(actual) && std::isnan(scale.scale)))
      << "scale is " << actual << ", expected " << scale.scale;
  for (std::size_t i = 0; i < row.size(); ++i) {
    ASSERT_EQ(reader.quantized(stored, static_cast<int>(i)), QuantizedElement(dtype, row[i], scale))
        << "of " << row[i] << " in a row to " << max;
  }
}

}  // namespace

void ExpectDocumentedValues(AttentionBackend& backend, DType dtype,
                            const std::function<PageReader(const KvGeometry& geometry,
                                                           std::int64_t page_size)>& reader_of) {
  const KvGeometry geometry{kHeads, kDims[0], kDims[1], dtype};
  const PageReader reader = reader_of(geometry, kPageSize);
  const std::size_t page_bytes = backend.PageLayout(geometry, kPageSize).page_bytes;
  constexpr int kPages = 3;
  static_assert(kFirst + kTokens <= kPages * kPageSize);
  const std::size_t bytes = kPages * page_bytes;
  MemoryAllocator& allocator = backend.memory();
  const std::shared_ptr<char> memory(
      static_cast<char*>(allocator.Allocate(bytes)),
      [&allocator, bytes](char* pages) { allocator.Free(pages, bytes); });
  std::memset(memory.get(), 0xff, bytes);
  std::vector<char> saved(bytes);  // what the host can read, once appends are done
  void* table[kPages];
  PageCopy copies[kPages];
  for (int i = 0; i < kPages; ++i) {
    table[i] = memory.get() + i * page_bytes;
    copies[i] = {table[i], saved.data() + i * page_bytes, page_bytes};
  }

  std::mt19937 random(11);
  for (DType row_dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    const std::vector<std::uint8_t> rows[] = {HardRows(row_dtype, kDims[0], random),
                                              HardRows(row_dtype, kDims[1], random)};
    const void *k = rows[0].data(), *v = rows[1].data();
    const KvAppendTask task{.geometry = geometry,
                            .destination = {table, kPages, kPageSize},
                            .position = kFirst,
                            .num_tokens = kTokens,
                            .k = DenseRows(k, row_dtype, kHeads, kDims[0]),
                            .v = DenseRows(v, row_dtype, kHeads, kDims[1])};
    ASSERT_TRUE(backend.AppendKv({&task, 1}).ok());
    ASSERT_TRUE(backend.SavePages(copies).ok());
    for (int i = 0; i < kTokens * kHeads * 2; ++i) {
      const int tensor = i % 2, head = i / 2 % kHeads, token = i / 2 / kHeads;
      SCOPED_TRACE(::testing::Message()
                   << std::string(DTypeName(dtype)) << " of " << std::string(DTypeName(row_dtype))
                   << (tensor == 0 ? " k[" : " v[") << token << "][" << head << "]");
      const int dim = kDims[tensor];
      std::vector<float> row(dim);
      for (int j = 0; j < dim; ++j) {
        row[j] = LoadElement(rows[tensor].data(), row_dtype, (token * kHeads + head) * dim + j);
      }
      const int position = kFirst + token;
      ExpectRow(reader, dtype,
                {saved.data() + position / kPageSize * page_bytes, head,
                 static_cast<int>(position % kPageSize), tensor == 1},
                row);
    }
  }
}

}  // namespace attention::testing
