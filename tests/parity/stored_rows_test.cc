// Rows read from a cache, written into another one and moved within it are the rows that it stores,
// bit for bit, whatever the backend, the type and the size of its pages.
#include <gmock/gmock.h>

#include <algorithm>
#include <cstring>
#include <map>
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

constexpr DType kKvDTypes[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kInt8,
                               DType::kFloat8E4M3};

struct NamedBackend {
  std::string name;
  std::unique_ptr<AttentionBackend> backend;
};

std::vector<NamedBackend> Backends() {
  std::vector<NamedBackend> backends;
  backends.push_back({"cpu of one thread", MakeCpu(1)});
  backends.push_back({"cpu of three threads", MakeCpu(3)});
  backends.push_back({"reference", reference::MakeReferenceBackend()});
  backends.push_back({"cuda", cuda::MakeCudaBackend(simt::MakeSimtDevice(/*seed=*/1))});
  return backends;
}

// The odd ones end in the middle of whatever a layout takes together. Those that every backend has.
std::vector<KvGeometry> Geometries(const AttentionBackend& backend, DType dtype) {
  std::vector<KvGeometry> geometries;
  for (const KvGeometry& geometry :
       {KvGeometry{3, 40, 23, dtype}, KvGeometry{1, 64, 64, dtype}, KvGeometry{2, 37, 128, dtype},
        KvGeometry{2, 1, 1, dtype}, KvGeometry{1, 80, 64, dtype, /*value_is_key_prefix=*/true}}) {
    AttentionParams params;
    params.num_q_heads = params.num_kv_heads = geometry.num_kv_heads;
    params.head_dim_qk = geometry.head_dim_qk;
    params.head_dim_v = geometry.head_dim_v;
    params.kv_dtype = dtype;
    params.value_is_key_prefix = geometry.value_is_key_prefix;
    if (backend.Supports(params, /*kv_len=*/200).ok()) geometries.push_back(geometry);
  }
  return geometries;
}

// Pages of a layer that the host can read, full of a byte pattern at first.
class Pages {
 public:
  Pages(AttentionBackend& backend, const KvGeometry& geometry, std::int64_t page_size,
        std::int64_t num_tokens)
      : backend_(backend), page_bytes_(backend.PageLayout(geometry, page_size).page_bytes) {
    const std::int64_t num_pages = num_tokens / page_size + 1;
    for (std::int64_t i = 0; i < num_pages; ++i) {
      void* page = backend.memory().Allocate(page_bytes_);
      std::memset(page, 0x5a, page_bytes_);
      table_.push_back(page);
    }
    view_ = {table_.data(), num_pages, page_size};
  }
  ~Pages() {
    for (void* page : table_) backend_.memory().Free(page, page_bytes_);
  }
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;

  const PagedKvView& view() const { return view_; }

 private:
  AttentionBackend& backend_;
  const std::size_t page_bytes_;
  std::vector<void*> table_;
  PagedKvView view_;
};

std::vector<float> RandomRows(std::int64_t elements, std::mt19937& random) {
  std::normal_distribution<float> normal;
  std::vector<float> rows(elements);
  for (float& x : rows) x = normal(random);
  return rows;
}

void Append(AttentionBackend& backend, const KvGeometry& geometry, const Pages& pages,
            std::int64_t num_tokens, std::mt19937& random) {
  const std::int64_t rows = num_tokens * geometry.num_kv_heads;
  const auto k = RandomRows(rows * geometry.head_dim_qk, random);
  const auto v = RandomRows(rows * geometry.head_dim_v, random);
  const void *k_data = k.data(), *v_data = v.data();
  KvAppendTask task{
      .geometry = geometry,
      .destination = pages.view(),
      .position = 0,
      .num_tokens = num_tokens,
      .k = DenseRows(k_data, DType::kFloat32, geometry.num_kv_heads, geometry.head_dim_qk),
      .v = DenseRows(v_data, DType::kFloat32, geometry.num_kv_heads, geometry.head_dim_v)};
  if (geometry.value_is_key_prefix) task.v = {};
  const absl::Status status = backend.AppendKv({&task, 1});
  ASSERT_TRUE(status.ok()) << status;
}

// Rows in memory of their own.
struct Rows {
  Rows(const KvGeometry& geometry, std::int64_t num_tokens)
      : bytes(StoredRowsLayout::Of(geometry, num_tokens).bytes),
        view(StoredRowsIn(geometry, num_tokens, bytes.data())) {}

  std::vector<std::byte> bytes;
  StoredRows view;
};

Rows Read(AttentionBackend& backend, const KvGeometry& geometry, const PagedKvView& pages,
          std::int64_t position, std::int64_t num_tokens) {
  Rows rows(geometry, num_tokens);
  const StoredRowsTask task{geometry, pages, position, num_tokens, rows.view};
  const absl::Status status = backend.ReadRows({&task, 1});
  EXPECT_TRUE(status.ok()) << status;
  return rows;
}

void Write(AttentionBackend& backend, const KvGeometry& geometry, const PagedKvView& pages,
           std::int64_t position, std::int64_t num_tokens, const Rows& rows) {
  const StoredRowsTask task{geometry, pages, position, num_tokens, rows.view};
  const absl::Status status = backend.WriteRows({&task, 1});
  ASSERT_TRUE(status.ok()) << status;
}

// The part of `rows` that belongs to a token and head: key, value and scales.
std::vector<std::byte> RowOf(const KvGeometry& geometry, const Rows& rows, std::int64_t token,
                             int head) {
  const std::size_t element = DTypeBytes(geometry.dtype);
  const std::int64_t row = token * geometry.num_kv_heads + head;
  std::vector<std::byte> bytes;
  const auto add = [&](const void* from, std::size_t count) {
    const auto* data = static_cast<const std::byte*>(from);
    if (data != nullptr) bytes.insert(bytes.end(), data, data + count);
  };
  add(rows.view.k + row * geometry.head_dim_qk * element, geometry.head_dim_qk * element);
  if (rows.view.v != nullptr) {
    add(rows.view.v + row * geometry.head_dim_v * element, geometry.head_dim_v * element);
  }
  if (rows.view.k_scales != nullptr) add(rows.view.k_scales + row, sizeof(float));
  if (rows.view.v_scales != nullptr) add(rows.view.v_scales + row, sizeof(float));
  return bytes;
}

TEST(StoredRowsTest, RowsOfATypeThatIsStoredAsItComesAreThoseThatCame) {
  const KvGeometry geometry{2, 37, 24, DType::kFloat32};
  constexpr std::int64_t kTokens = 70;
  for (const NamedBackend& target : Backends()) {
    SCOPED_TRACE(target.name);
    std::mt19937 random(3);
    const Pages pages(*target.backend, geometry, 32, kTokens);
    Append(*target.backend, geometry, pages, kTokens, random);
    std::mt19937 again(3);
    const auto k = RandomRows(kTokens * 2 * 37, again);
    const auto v = RandomRows(kTokens * 2 * 24, again);
    const Rows rows = Read(*target.backend, geometry, pages.view(), 0, kTokens);
    EXPECT_EQ(std::memcmp(rows.view.k, k.data(), k.size() * sizeof(float)), 0);
    EXPECT_EQ(std::memcmp(rows.view.v, v.data(), v.size() * sizeof(float)), 0);
  }
}

// So a session can move between backends of any kind.
TEST(StoredRowsTest, EveryBackendStoresTheSameRows) {
  constexpr std::int64_t kTokens = 90;
  const std::vector<NamedBackend> backends = Backends();
  for (const DType dtype : kKvDTypes) {
    std::map<int, std::vector<std::byte>> expected;  // by head_dim_qk
    for (const NamedBackend& target : backends) {
      for (const KvGeometry& geometry : Geometries(*target.backend, dtype)) {
        std::mt19937 random(5);
        const Pages pages(*target.backend, geometry, 48, kTokens);
        Append(*target.backend, geometry, pages, kTokens, random);
        const Rows rows = Read(*target.backend, geometry, pages.view(), 0, kTokens);
        const auto first = expected.try_emplace(geometry.head_dim_qk, rows.bytes).first;
        EXPECT_TRUE(rows.bytes == first->second)
            << target.name << " " << std::string(DTypeName(dtype)) << " " << geometry.head_dim_qk;
      }
    }
  }
}

TEST(StoredRowsTest, WrittenIntoPagesOfAnotherSizePieceByPieceTheyAreTheSame) {
  constexpr std::int64_t kTokens = 150;
  for (const NamedBackend& target : Backends()) {
    for (const DType dtype : kKvDTypes) {
      for (const KvGeometry& geometry : Geometries(*target.backend, dtype)) {
        SCOPED_TRACE(::testing::Message() << target.name << " " << std::string(DTypeName(dtype))
                                          << " " << geometry.head_dim_qk);
        std::mt19937 random(7);
        const Pages from(*target.backend, geometry, 32, kTokens);
        const Pages to(*target.backend, geometry, 64, kTokens);
        Append(*target.backend, geometry, from, kTokens, random);
        for (std::int64_t begin = 0; begin < kTokens;) {
          const std::int64_t count = std::min<std::int64_t>(kTokens - begin, 1 + random() % 60);
          const Rows part = Read(*target.backend, geometry, from.view(), begin, count);
          Write(*target.backend, geometry, to.view(), begin, count, part);
          begin += count;
        }
        EXPECT_TRUE(Read(*target.backend, geometry, to.view(), 0, kTokens).bytes ==
                    Read(*target.backend, geometry, from.view(), 0, kTokens).bytes);
      }
    }
  }
}

// Tokens in ascending order, in runs and alone.
std::vector<std::int64_t> DrawTokens(std::int64_t num_tokens, std::mt19937& random) {
  std::vector<std::int64_t> tokens;
  for (std::int64_t token = 0; token < num_tokens;) {
    const std::int64_t run = random() % 4 == 0 ? 40 : 1;
    const std::int64_t end = std::min(num_tokens, token + run);
    if (random() % 2 == 0) {
      for (std::int64_t i = token; i < end; ++i) tokens.push_back(i);
    }
    token = end;
  }
  return tokens;
}

struct Move {
  std::int64_t position = 0;
  bool is_in_place = false;
};

// Each head keeps tokens of its own, as many as the others.
void ExpectMoved(AttentionBackend& backend, const KvGeometry& geometry, const Move& move,
                 std::mt19937& random) {
  constexpr std::int64_t kTokens = 200;
  const Pages from(backend, geometry, 32, kTokens);
  const Pages apart(backend, geometry, 64, kTokens);
  const Pages& to = move.is_in_place ? from : apart;
  Append(backend, geometry, from, kTokens, random);
  const Rows before = Read(backend, geometry, from.view(), 0, kTokens);
  std::vector<std::vector<std::int64_t>> kept(geometry.num_kv_heads);
  std::size_t least = kTokens;
  for (std::vector<std::int64_t>& tokens : kept) {
    tokens = DrawTokens(kTokens - move.position, random);
    for (std::int64_t& token : tokens) token += move.position;
    least = std::min(least, tokens.size());
  }
  std::vector<MoveTokensTask> tasks;
  for (int head = 0; head < geometry.num_kv_heads; ++head) {
    kept[head].resize(least);
    tasks.push_back({geometry, from.view(), to.view(), head, move.position, kept[head]});
  }
  const absl::Status status = backend.MoveTokens(tasks);
  ASSERT_TRUE(status.ok()) << status;
  const auto count = static_cast<std::int64_t>(least);
  const Rows after = Read(backend, geometry, to.view(), 0, move.position + count);
  for (int head = 0; head < geometry.num_kv_heads; ++head) {
    for (std::int64_t i = 0; i < count; ++i) {
      ASSERT_TRUE(RowOf(geometry, after, move.position + i, head) ==
                  RowOf(geometry, before, kept[head][i], head))
          << "token " << kept[head][i] << " of head " << head;
    }
    for (std::int64_t i = 0; move.is_in_place && i < move.position; ++i) {
      ASSERT_TRUE(RowOf(geometry, after, i, head) == RowOf(geometry, before, i, head))
          << "token " << i << ", which stays";
    }
  }
}

TEST(StoredRowsTest, TokensMoveAsTheyAreInPlaceAndIntoOtherPages) {
  for (const NamedBackend& target : Backends()) {
    for (const DType dtype : kKvDTypes) {
      for (const KvGeometry& geometry : Geometries(*target.backend, dtype)) {
        for (const Move& move : {Move{0, false}, Move{0, true}, Move{33, true}, Move{64, false}}) {
          SCOPED_TRACE(::testing::Message()
                       << target.name << " " << std::string(DTypeName(dtype)) << " "
                       << geometry.head_dim_qk << " from " << move.position << " on"
                       << (move.is_in_place ? ", in place" : ""));
          std::mt19937 random(static_cast<std::uint32_t>(11 + move.position));
          ExpectMoved(*target.backend, geometry, move, random);
        }
      }
    }
  }
}

TEST(StoredRowsTest, WrongTasksAreRefusedByField) {
  const KvGeometry geometry{2, 8, 8, DType::kInt8};
  for (const NamedBackend& target : Backends()) {
    SCOPED_TRACE(target.name);
    const Pages pages(*target.backend, geometry, 32, 60);  // two pages
    const Rows rows(geometry, 70);
    const auto message_of = [&](StoredRowsTask task) {
      return std::string(target.backend->ReadRows({&task, 1}).message());
    };
    StoredRowsTask task{geometry, pages.view(), 0, 65, rows.view};
    EXPECT_EQ(message_of(task), "task 0: tokens are [0, 0 + 65), expected a part of [0, 64)");
    task.num_tokens = 64;
    task.rows.v_scales = nullptr;
    EXPECT_EQ(message_of(task), "task 0: v_scales is missing, expected scales");
    task.rows.k = nullptr;
    EXPECT_EQ(message_of(task), "task 0: k is missing, expected rows");

    const auto move_message_of = [&](std::vector<std::int64_t> tokens, std::int64_t position) {
      const MoveTokensTask move{geometry, pages.view(), pages.view(), 1, position, tokens};
      return std::string(target.backend->MoveTokens({&move, 1}).message());
    };
    EXPECT_EQ(move_message_of({3, 3}, 0), "task 0: tokens[1] is 3, expected 4 to 63");
    EXPECT_EQ(move_message_of({3, 64}, 0), "task 0: tokens[1] is 64, expected 4 to 63");
    EXPECT_EQ(move_message_of({3, 4}, 4),
              "task 0: tokens[0] is 3, expected at least 4, its place in the same page");
  }
}

}  // namespace
}  // namespace attention::testing
