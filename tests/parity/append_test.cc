// Rows that arrive scattered leave the bytes in the pages that contiguous rows leave.
#include <gmock/gmock.h>

#include <cstring>
#include <deque>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernels/cuda/cuda_backend.h"
#include "kernels/reference/reference_backend.h"
#include "tests/simt/simt_device.h"
#include "tests/support/attention_problem.h"
#include "tests/support/cpu_targets.h"

namespace attention::testing {
namespace {

constexpr int kHeads = 3;

struct AppendSpec {
  DType dtype;      // of the pages
  DType row_dtype;  // of the rows
  int head_dim_qk = 40;
  int head_dim_v = 23;
  std::int64_t position = 0;
  std::int64_t num_tokens = 0;
  bool value_is_key_prefix = false;
};

// Cuts rows at random into pieces, each a block of the heap as long as its rows and at an address
// of its own alignment, so that the sanitizer sees a read past either end.
class Scattered {
 public:
  Scattered(const std::vector<std::uint8_t>& rows, DType dtype, int dim, std::int64_t num_rows,
            std::mt19937& random) {
    const std::size_t row_bytes = kHeads * dim * DTypeBytes(dtype);
    for (std::int64_t row = 0; row < num_rows;) {
      const std::int64_t longest = random() % 3 == 0 ? 1 : 60;
      const std::int64_t count = std::min<std::int64_t>(num_rows - row, 1 + random() % longest);
      const std::size_t shift = random() % 8;
      auto& memory = memory_.emplace_back(new std::uint8_t[shift + count * row_bytes]);
      std::memcpy(memory.get() + shift, rows.data() + row * row_bytes, count * row_bytes);
      const void* data = memory.get() + shift;
      pieces_.push_back({row, DenseRows(data, dtype, kHeads, dim)});
      row += count;
    }
  }

  const std::vector<RowsPiece>& pieces() const { return pieces_; }

 private:
  std::deque<std::unique_ptr<std::uint8_t[]>> memory_;
  std::vector<RowsPiece> pieces_;
};

std::vector<std::uint8_t> RandomRows(DType dtype, std::int64_t elements, std::mt19937& random) {
  std::normal_distribution<float> normal;
  std::vector<std::uint8_t> rows(elements * DTypeBytes(dtype));
  for (std::int64_t i = 0; i < elements; ++i) StoreElement(rows.data(), dtype, i, normal(random));
  return rows;
}

// The pages after appending `task`, whose destination is overwritten.
std::vector<std::uint8_t> PagesAfter(AttentionBackend& backend, KvAppendTask task) {
  constexpr std::int64_t kPageSize = 48;
  const std::size_t page_bytes = backend.PageLayout(task.geometry, kPageSize).page_bytes;
  const std::int64_t num_pages = (task.position + task.num_tokens) / kPageSize + 1;
  ShiftedBytes memory(num_pages * page_bytes, 0);
  std::memset(memory.data(), 0x5a, num_pages * page_bytes);
  std::vector<void*> table;
  for (std::int64_t i = 0; i < num_pages; ++i) table.push_back(memory.data() + i * page_bytes);
  task.destination = {table.data(), num_pages, kPageSize};
  const absl::Status status = backend.AppendKv({&task, 1});
  EXPECT_TRUE(status.ok()) << status;
  std::vector<std::uint8_t> pages(num_pages * page_bytes);
  const PageCopy copy{memory.data(), pages.data(), pages.size()};
  const absl::Status saved = backend.SavePages({&copy, 1});  // waits for the append
  EXPECT_TRUE(saved.ok()) << saved;
  return pages;
}

void ExpectPiecesLeaveNoTrace(AttentionBackend& backend, const AppendSpec& spec,
                              std::mt19937& random) {
  const auto k = RandomRows(spec.row_dtype, spec.num_tokens * kHeads * spec.head_dim_qk, random);
  const auto v = RandomRows(spec.row_dtype, spec.num_tokens * kHeads * spec.head_dim_v, random);
  const void *k_data = k.data(), *v_data = v.data();
  KvAppendTask task{
      .geometry = {kHeads, spec.head_dim_qk, spec.head_dim_v, spec.dtype, spec.value_is_key_prefix},
      .destination = {},
      .position = spec.position,
      .num_tokens = spec.num_tokens,
      .k = DenseRows(k_data, spec.row_dtype, kHeads, spec.head_dim_qk),
      .v = DenseRows(v_data, spec.row_dtype, kHeads, spec.head_dim_v)};
  if (spec.value_is_key_prefix) task.v = {};
  const std::vector<std::uint8_t> expected = PagesAfter(backend, task);
  const Scattered k_parts(k, spec.row_dtype, spec.head_dim_qk, spec.num_tokens, random);
  const Scattered v_parts(v, spec.row_dtype, spec.head_dim_v, spec.num_tokens, random);
  task.k_pieces = k_parts.pieces();
  EXPECT_TRUE(PagesAfter(backend, task) == expected) << "k in pieces";
  if (spec.value_is_key_prefix) return;
  task.v_pieces = v_parts.pieces();
  task.k = task.v = {};
  EXPECT_TRUE(PagesAfter(backend, task) == expected) << "both in pieces";
}

constexpr DType kKvDTypes[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kInt8,
                               DType::kFloat8E4M3};
constexpr DType kRowDTypes[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16};

TEST(AppendTest, PiecesOfAnyCutAndAlignmentLeaveNoTrace) {
  std::mt19937 random(7);
  for (const TargetBackend& target : CpuTargets()) {
    for (DType dtype : kKvDTypes) {
      for (DType row_dtype : kRowDTypes) {
        for (int round = 0; round < 6; ++round) {
          const AppendSpec spec{.dtype = dtype,
                                .row_dtype = row_dtype,
                                .head_dim_qk = round % 2 == 0 ? 64 : 37,
                                .head_dim_v = round % 3 == 0 ? 128 : 23,
                                .position = static_cast<std::int64_t>(random() % 100),
                                .num_tokens = 1 + static_cast<std::int64_t>(random() % 700)};
          SCOPED_TRACE(::testing::Message()
                       << target.name << " " << std::string(DTypeName(dtype)) << " of "
                       << std::string(DTypeName(row_dtype)) << " at " << spec.position << ", "
                       << spec.num_tokens << " tokens");
          ExpectPiecesLeaveNoTrace(*target.backend, spec, random);
        }
      }
    }
  }
}

TEST(AppendTest, WideAndLatentRowsComeInPiecesToo) {
  std::mt19937 random(9);
  for (const TargetBackend& target : CpuTargets()) {
    SCOPED_TRACE(target.name);
    for (DType dtype : kKvDTypes) {
      for (bool is_latent : {false, true}) {
        const AppendSpec spec{.dtype = dtype,
                              .row_dtype = DType::kBFloat16,
                              .head_dim_qk = 576,
                              .head_dim_v = 512,
                              .position = 21,
                              .num_tokens = 130,
                              .value_is_key_prefix = is_latent};
        ExpectPiecesLeaveNoTrace(*target.backend, spec, random);
        ExpectPiecesLeaveNoTrace(*reference::MakeReferenceBackend(), spec, random);
      }
    }
  }
}

TEST(AppendTest, TheReferenceTakesPiecesToo) {
  std::mt19937 random(7);
  for (DType dtype : kKvDTypes) {
    for (DType row_dtype : kRowDTypes) {
      ExpectPiecesLeaveNoTrace(
          *reference::MakeReferenceBackend(),
          {.dtype = dtype, .row_dtype = row_dtype, .position = 21, .num_tokens = 130}, random);
    }
  }
}

TEST(AppendTest, TheCudaBackendTakesPiecesToo) {
  std::mt19937 random(7);
  const auto backend = cuda::MakeCudaBackend(simt::MakeSimtDevice(/*seed=*/1));
  for (DType dtype : kKvDTypes) {
    for (DType row_dtype : kRowDTypes) {
      ExpectPiecesLeaveNoTrace(
          *backend, {.dtype = dtype, .row_dtype = row_dtype, .position = 21, .num_tokens = 130},
          random);
    }
  }
}

class AppendOfUnlikePiecesTest : public ::testing::TestWithParam<const char*> {};

INSTANTIATE_TEST_SUITE_P(Backends, AppendOfUnlikePiecesTest, ::testing::Values("cpu", "cuda"));

TEST_P(AppendOfUnlikePiecesTest, PiecesMayDifferInTypeAndStrides) {
  const auto backend = std::string(GetParam()) == "cpu"
                           ? MakeCpu(2)
                           : cuda::MakeCudaBackend(simt::MakeSimtDevice(/*seed=*/1));
  std::mt19937 random(3);
  constexpr int kDim = 16;
  constexpr std::int64_t kTokens = 40, kFirst = 13;
  const auto rows = RandomRows(DType::kFloat32, kTokens * kHeads * kDim, random);
  const void* data = rows.data();
  KvAppendTask task{.geometry = {kHeads, kDim, kDim, DType::kFloat32},
                    .destination = {},
                    .num_tokens = kTokens,
                    .k = DenseRows(data, DType::kFloat32, kHeads, kDim),
                    .v = DenseRows(data, DType::kFloat32, kHeads, kDim)};
  // The first rows as float16, which is exact for a copy that was rounded to it.
  std::vector<std::uint8_t> rounded = rows, halves(kFirst * kHeads * kDim * 2);
  for (std::int64_t i = 0; i < kFirst * kHeads * kDim; ++i) {
    StoreElement(halves.data(), DType::kFloat16, i, LoadElement(rows.data(), DType::kFloat32, i));
    StoreElement(rounded.data(), DType::kFloat32, i,
                 LoadElement(halves.data(), DType::kFloat16, i));
  }
  // The others head by head.
  std::vector<float> by_head((kTokens - kFirst) * kHeads * kDim);
  for (std::int64_t row = kFirst; row < kTokens; ++row) {
    for (int head = 0; head < kHeads; ++head) {
      for (int dim = 0; dim < kDim; ++dim) {
        by_head[(head * (kTokens - kFirst) + row - kFirst) * kDim + dim] =
            LoadElement(rounded.data(), DType::kFloat32, (row * kHeads + head) * kDim + dim);
      }
    }
  }
  const void* rounded_data = rounded.data();
  task.k = DenseRows(rounded_data, DType::kFloat32, kHeads, kDim);
  const auto expected = PagesAfter(*backend, task);
  const void* halves_data = halves.data();
  const RowsPiece pieces[] = {
      {0, DenseRows(halves_data, DType::kFloat16, kHeads, kDim)},
      {kFirst, {by_head.data(), DType::kFloat32, kDim, (kTokens - kFirst) * kDim}}};
  task.k_pieces = pieces;
  EXPECT_TRUE(PagesAfter(*backend, task) == expected);
}

}  // namespace
}  // namespace attention::testing
