// Caches that share pages: what each change takes and gives back, and who reads what afterwards.
#include <gmock/gmock.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <span>
#include <vector>

#include "kernels/reference/reference_backend.h"
#include "server/base/error_reason.h"
#include "server/cache/kv_cache.h"
#include "server/cache/kv_cache_factory.h"
#include "tests/support/failing_new.h"
#include "tests/support/forwarding_backend.h"

namespace attention::server {
namespace {

using ::attention::testing::FailingAllocation;
using ::attention::testing::ForwardingBackend;
using Cache = std::shared_ptr<KvCache>;

constexpr std::size_t kChunk = std::size_t{1} << 14;
constexpr std::int64_t kPageSize = 16;
constexpr KvGeometry kGeometry{1, 8, 8, DType::kFloat32};

// Counts copies of pages, and fails when it is told to.
class CopyingBackend final : public ForwardingBackend {
 public:
  absl::Status CopyPages(std::span<const DevicePageCopy> copies) override {
    if (!copy_status.ok()) return copy_status;
    num_copies += static_cast<int>(copies.size());
    return ForwardingBackend::CopyPages(copies);
  }

  absl::Status copy_status;
  int num_copies = 0;
};

class SharedPagesTest : public ::testing::Test {
 protected:
  ~SharedPagesTest() override {
    EXPECT_EQ(pool_.used_bytes() + host_.used_bytes(), 0u) << "a page is left";
    EXPECT_EQ(ledger_.HeldBy("a"), 0);
  }

  Cache NewCache(int num_layers = 1) { return *factory_.Create(kGeometry, num_layers, 0, "a"); }
  Cache Fork(const Cache& cache, std::int64_t length) {
    Cache copy = factory_.CreateLike(*cache);
    cache->ForkTo(*copy, length);
    return copy;
  }

  // Appends tokens of a content, which the memory of their page and their checksum show, to a
  // layer.
  absl::Status Append(const Cache& cache, std::int64_t num_tokens, std::uint32_t content,
                      int layer = 0) {
    const std::int64_t begin = cache->length(layer), end = begin + num_tokens;
    if (absl::Status status = cache->OwnTail(backend_, layer); !status.ok()) return status;
    if (absl::Status status = cache->Extend(layer, end); !status.ok()) return status;
    for (std::int64_t token = begin; token < end; ++token) *At(*cache, token, layer) = content;
    cache->Append(layer, std::vector<std::uint32_t>(static_cast<std::size_t>(num_tokens), content));
    return absl::OkStatus();
  }
  void MustAppend(const Cache& cache, std::int64_t num_tokens, std::uint32_t content,
                  int layer = 0) {
    const absl::Status status = Append(cache, num_tokens, content, layer);
    ASSERT_TRUE(status.ok()) << status;
  }

  static std::uint32_t* At(const KvCache& cache, std::int64_t token, int layer = 0) {
    void* page = cache.View(layer).pages[token / kPageSize];
    return static_cast<std::uint32_t*>(page) + token % kPageSize;
  }
  // The contents of the layer's tokens, which its memory and its checksums agree on.
  static std::vector<std::uint32_t> Contents(const Cache& cache, int layer = 0) {
    std::vector<std::uint32_t> contents;
    for (std::int64_t token = 0; token < cache->length(layer); ++token) {
      contents.push_back(*At(*cache, token, layer));
    }
    EXPECT_TRUE(cache->Holds(layer, 0, contents));
    for (std::size_t begin = 1; begin < contents.size(); begin += 7) {
      const auto rest = std::span(contents).subspan(begin);
      EXPECT_TRUE(cache->Holds(layer, static_cast<std::int64_t>(begin), rest));
    }
    EXPECT_EQ(cache->View(layer).num_pages, (cache->length(layer) + kPageSize - 1) / kPageSize);
    return contents;
  }
  // Runs of so many tokens of so much content.
  static std::vector<std::uint32_t> Runs(
      std::initializer_list<std::pair<std::size_t, std::uint32_t>> runs) {
    std::vector<std::uint32_t> contents;
    for (const auto& [count, content] : runs) contents.insert(contents.end(), count, content);
    return contents;
  }

  std::int64_t PageBytes() const {
    return static_cast<std::int64_t>(backend_.PageLayout(kGeometry, kPageSize).page_bytes);
  }
  // Pages on the device, which count for their owner.
  std::int64_t NumPages() const {
    EXPECT_EQ(static_cast<std::int64_t>(pool_.used_bytes()), ledger_.HeldBy("a"));
    return static_cast<std::int64_t>(pool_.used_bytes()) / PageBytes();
  }

  CopyingBackend backend_;
  PagePool pool_{backend_.memory(), 8 * kChunk, kChunk};
  PagePool host_{backend_.memory(), 8 * kChunk, kChunk};
  TenantLimitsTable limits_;
  TenantLedger ledger_{TenantLimit::kKvBytes, &TenantLimits::kv_bytes, limits_};
  KvCacheFactory factory_{{{backend_, pool_}}, kPageSize, &ledger_};
};

// --- Forks ---

TEST_F(SharedPagesTest, AForkReadsTheSamePagesAndTakesNone) {
  const Cache cache = NewCache(2);
  MustAppend(cache, 40, 1, 0);
  MustAppend(cache, 40, 2, 1);
  ASSERT_EQ(NumPages(), 6);
  const Cache copy = Fork(cache, 40);
  EXPECT_EQ(NumPages(), 6);
  EXPECT_EQ(backend_.num_copies, 0);
  EXPECT_EQ(copy->committed_length(), 40);
  EXPECT_EQ(copy->kv_bytes(), 6 * PageBytes()) << "what it reads, also where others do";
  for (int layer : {0, 1}) {
    EXPECT_EQ(Contents(copy, layer), Contents(cache, layer));
    EXPECT_EQ(At(*copy, 39, layer), At(*cache, 39, layer));
  }
}

TEST_F(SharedPagesTest, WhoAppendsToAPageThatIsNotFullGetsACopyOfIt) {
  const Cache cache = NewCache();
  MustAppend(cache, 40, 1);
  const Cache copy = Fork(cache, 40);
  MustAppend(copy, 1, 2);
  EXPECT_EQ(backend_.num_copies, 1);
  EXPECT_EQ(NumPages(), 4) << "two full ones, and one for each";
  MustAppend(cache, 1, 3);
  EXPECT_EQ(backend_.num_copies, 1) << "the other one is its own again";
  EXPECT_EQ(NumPages(), 4);
  EXPECT_EQ(Contents(cache), Runs({{40, 1}, {1, 3}}));
  EXPECT_EQ(Contents(copy), Runs({{40, 1}, {1, 2}}));
  EXPECT_EQ(At(*cache, 31), At(*copy, 31));
}

TEST_F(SharedPagesTest, TheForkedCacheCopiesToo) {
  const Cache cache = NewCache();
  MustAppend(cache, 40, 1);
  const Cache copy = Fork(cache, 40);
  MustAppend(cache, 9, 2);
  EXPECT_EQ(backend_.num_copies, 1);
  EXPECT_EQ(NumPages(), 5) << "two full ones, one for each, and a new one";
  EXPECT_EQ(Contents(copy), Runs({{40, 1}}));
  EXPECT_EQ(Contents(cache), Runs({{40, 1}, {9, 2}}));
}

TEST_F(SharedPagesTest, AFullPageIsNeverCopied) {
  const Cache cache = NewCache();
  MustAppend(cache, 32, 1);
  const Cache copy = Fork(cache, 32);
  MustAppend(copy, 1, 2);
  MustAppend(cache, 1, 3);
  EXPECT_EQ(backend_.num_copies, 0);
  EXPECT_EQ(NumPages(), 4);
}

TEST_F(SharedPagesTest, AForkAtALengthBeforeTheEndSeesNothingBehindIt) {
  const Cache cache = NewCache();
  MustAppend(cache, 20, 1);
  MustAppend(cache, 30, 2);
  const Cache copy = Fork(cache, 20), empty = Fork(cache, 0), page = Fork(cache, 16);
  EXPECT_EQ(Contents(copy), Runs({{20, 1}}));
  EXPECT_EQ(Contents(empty), Runs({}));
  EXPECT_EQ(Contents(page), Runs({{16, 1}}));
  MustAppend(cache, 1, 3);
  EXPECT_EQ(backend_.num_copies, 0) << "its last page is nobody else's";
  MustAppend(copy, 20, 4);
  MustAppend(empty, 3, 5);
  MustAppend(page, 3, 6);
  EXPECT_EQ(backend_.num_copies, 1);
  EXPECT_EQ(Contents(cache), Runs({{20, 1}, {30, 2}, {1, 3}}));
  EXPECT_EQ(Contents(copy), Runs({{20, 1}, {20, 4}}));
  EXPECT_EQ(Contents(empty), Runs({{3, 5}}));
  EXPECT_EQ(Contents(page), Runs({{16, 1}, {3, 6}}));
  EXPECT_EQ(NumPages(), 4 + 2 + 1 + 1);
}

TEST_F(SharedPagesTest, ForksOfForksGiveBackEachPageWithItsLastCache) {
  std::vector<int> order = {0, 1, 2, 3};
  do {
    SCOPED_TRACE(::testing::PrintToString(order));
    std::vector<Cache> caches(4);
    caches[0] = NewCache();
    MustAppend(caches[0], 40, 1);  // 3 pages
    caches[1] = Fork(caches[0], 40);
    MustAppend(caches[1], 30, 2);  // a copy, and 2 more
    caches[2] = Fork(caches[1], 70);
    MustAppend(caches[2], 5, 3);      // a copy
    caches[3] = Fork(caches[2], 50);  // in the middle of the third cache's
    MustAppend(caches[3], 20, 4);     // a copy, and 1 more
    ASSERT_EQ(NumPages(), 3 + 3 + 1 + 2);
    const std::vector<std::vector<std::uint32_t>> expected = {
        Runs({{40, 1}}), Runs({{40, 1}, {30, 2}}), Runs({{40, 1}, {30, 2}, {5, 3}}),
        Runs({{40, 1}, {10, 2}, {20, 4}})};
    for (const int gone : order) {
      caches[gone].reset();
      for (int i = 0; i < 4; ++i) {
        if (caches[i] == nullptr) continue;
        EXPECT_EQ(Contents(caches[i]), expected[i]);
      }
    }
    EXPECT_EQ(NumPages(), 0);
  } while (std::next_permutation(order.begin(), order.end()));
}

TEST_F(SharedPagesTest, BeamsThatForkEachTokenKeepNoPageThatNobodyReads) {
  Cache beam = NewCache();
  MustAppend(beam, 5, 1);
  for (std::uint32_t token = 0; token < 100; ++token) {
    const Cache next = Fork(beam, beam->length(0));
    MustAppend(next, 1, token);
    beam = next;
  }
  EXPECT_EQ(NumPages(), (105 + kPageSize - 1) / kPageSize);
}

TEST_F(SharedPagesTest, AtItsLimitAnOwnerForksAndIsRefusedTheCopy) {
  const Cache cache = NewCache();
  MustAppend(cache, 24, 1);
  limits_.Replace({{.kv_bytes = 2 * PageBytes()}, {}});
  const Cache copy = Fork(cache, 24);
  EXPECT_EQ(GetErrorDetail(Append(copy, 1, 2))->reason, "QUOTA_EXCEEDED");
  EXPECT_EQ(GetErrorDetail(Append(cache, 1, 2))->reason, "QUOTA_EXCEEDED");
  EXPECT_EQ(Contents(copy), Runs({{24, 1}}));
  limits_.Replace({{.kv_bytes = 3 * PageBytes()}, {}});
  MustAppend(copy, 1, 2);
  MustAppend(cache, 1, 3);
}

TEST_F(SharedPagesTest, ACopyThatFailsLeavesThePageAsItWas) {
  const Cache cache = NewCache();
  MustAppend(cache, 24, 1);
  const Cache copy = Fork(cache, 24);
  backend_.copy_status = absl::InternalError("the device failed");
  EXPECT_EQ(Append(copy, 1, 2), backend_.copy_status);
  EXPECT_EQ(NumPages(), 2);
  EXPECT_EQ(Contents(copy), Runs({{24, 1}}));
  backend_.copy_status = absl::OkStatus();
  MustAppend(copy, 1, 2);
  EXPECT_EQ(NumPages(), 3);
}

// --- Truncation ---

TEST_F(SharedPagesTest, TruncationFreesThePagesThatHoldNoToken) {
  const Cache cache = NewCache(2);
  MustAppend(cache, 70, 1, 0);
  MustAppend(cache, 50, 1, 1);
  cache->Truncate(50);
  EXPECT_EQ(NumPages(), 4 + 4);
  EXPECT_EQ(cache->length(0), 50);
  cache->Truncate(16);
  EXPECT_EQ(NumPages(), 1 + 1);
  EXPECT_EQ(cache->kv_bytes(), 2 * PageBytes());
  MustAppend(cache, 20, 2, 1);
  EXPECT_EQ(Contents(cache, 1), Runs({{16, 1}, {20, 2}}));
  cache->Truncate(0);
  EXPECT_EQ(NumPages(), 0);
}

TEST_F(SharedPagesTest, TruncationLeavesSharedPagesToTheOthers) {
  const Cache cache = NewCache();
  MustAppend(cache, 56, 1);
  Cache copy = Fork(cache, 56);
  MustAppend(copy, 30, 2);
  ASSERT_EQ(NumPages(), 4 + 3);
  copy->Truncate(20);
  EXPECT_EQ(NumPages(), 4);
  EXPECT_EQ(Contents(copy), Runs({{20, 1}}));
  EXPECT_EQ(copy->kv_bytes(), 2 * PageBytes());
  MustAppend(copy, 1, 3);
  EXPECT_EQ(backend_.num_copies, 2) << "it appends to a page that is full for the other one";
  EXPECT_EQ(Contents(copy), Runs({{20, 1}, {1, 3}}));
  EXPECT_EQ(Contents(cache), Runs({{56, 1}}));
  cache->Truncate(20);
  MustAppend(cache, 40, 4);
  EXPECT_EQ(Contents(cache), Runs({{20, 1}, {40, 4}}));
  EXPECT_EQ(Contents(copy), Runs({{20, 1}, {1, 3}}));
}

TEST_F(SharedPagesTest, DraftsThatAreTakenBackAgainAndAgainTakeNoMorePages) {
  const Cache cache = NewCache();
  MustAppend(cache, 60, 1);
  const Cache copy = Fork(cache, 60);
  for (std::uint32_t round = 0; round < 50; ++round) {
    MustAppend(cache, 40, round);
    cache->Truncate(10 + round);
    const Cache draft = Fork(cache, 5);
    MustAppend(draft, 30, round);
  }
  EXPECT_LE(NumPages(), 4 + 4);
  EXPECT_EQ(Contents(copy), Runs({{60, 1}}));
}

// --- Reorders ---

TEST_F(SharedPagesTest, BeamsThatSwapTakeAndCopyNothing) {
  const std::vector<Cache> beams = {NewCache(), NewCache(), NewCache()};
  for (std::uint32_t i = 0; i < 3; ++i) MustAppend(beams[i], 20 + i, i);
  KvCache::Reorder(beams, std::vector<std::size_t>{1, 2, 0});
  EXPECT_EQ(Contents(beams[0]), Runs({{21, 1}}));
  EXPECT_EQ(Contents(beams[1]), Runs({{22, 2}}));
  EXPECT_EQ(Contents(beams[2]), Runs({{20, 0}}));
  for (const Cache& beam : beams) MustAppend(beam, 1, 9);
  EXPECT_EQ(backend_.num_copies, 0);
  EXPECT_EQ(NumPages(), 6);
}

TEST_F(SharedPagesTest, BeamsThatFollowOneShareItAndTheDroppedOnesGoAtOnce) {
  const std::vector<Cache> beams = {NewCache(), NewCache(), NewCache()};
  for (std::uint32_t i = 0; i < 3; ++i) MustAppend(beams[i], 20, i);
  KvCache::Reorder(beams, std::vector<std::size_t>{1, 1, 1});
  EXPECT_EQ(NumPages(), 2);
  for (std::uint32_t i = 0; i < 3; ++i) MustAppend(beams[i], 1, 10 + i);
  EXPECT_EQ(backend_.num_copies, 2) << "the last one has the page itself";
  EXPECT_EQ(NumPages(), 4);
  for (std::uint32_t i = 0; i < 3; ++i) {
    EXPECT_EQ(Contents(beams[i]), Runs({{20, 1}, {1, 10 + i}}));
  }
}

// --- Pages on the host ---

TEST_F(SharedPagesTest, PagesThatOthersHaveStayOnTheDevice) {
  const Cache cache = NewCache();
  MustAppend(cache, 40, 1);
  Cache copy = Fork(cache, 40);
  MustAppend(copy, 30, 2);
  ASSERT_EQ(NumPages(), 3 + 3);
  EXPECT_EQ(static_cast<std::int64_t>(copy->SpillableBytes()), 3 * PageBytes());
  ASSERT_TRUE(copy->Spill(backend_, host_).ok());
  EXPECT_EQ(NumPages(), 3);
  EXPECT_EQ(static_cast<std::int64_t>(copy->SpilledBytes()), 3 * PageBytes());
  EXPECT_EQ(copy->kv_bytes(), 5 * PageBytes());
  EXPECT_EQ(Contents(cache), Runs({{40, 1}}));
  ASSERT_TRUE(copy->Restore(backend_).ok());
  EXPECT_EQ(host_.used_bytes(), 0u);
  EXPECT_EQ(Contents(copy), Runs({{40, 1}, {30, 2}}));
  // A spilled cache may be the last one.
  ASSERT_TRUE(copy->Spill(backend_, host_).ok());
  ASSERT_TRUE(cache->Spill(backend_, host_).ok()) << "the page that only it has";
  EXPECT_EQ(NumPages(), 2);
  copy.reset();
  ASSERT_TRUE(cache->Restore(backend_).ok());
  EXPECT_EQ(Contents(cache), Runs({{40, 1}}));
}

TEST_F(SharedPagesTest, WhoIsLeftAloneMovesToTheHostWhole) {
  Cache cache = NewCache();
  MustAppend(cache, 40, 1);
  void* const lost = At(*cache, 0);  // at the start of its chunk
  Cache copy = Fork(cache, 40);
  MustAppend(copy, 30, 2);
  const Cache last = Fork(copy, 70);
  cache.reset();
  copy.reset();
  EXPECT_EQ(static_cast<std::int64_t>(last->SpillableBytes()), 5 * PageBytes());
  ASSERT_TRUE(last->Spill(backend_, host_).ok());
  EXPECT_EQ(NumPages(), 0);
  pool_.LoseAll();
  EXPECT_FALSE(last->is_lost());
  ASSERT_TRUE(last->Restore(backend_).ok());
  EXPECT_EQ(Contents(last), Runs({{40, 1}, {30, 2}}));
  MustAppend(last, 1, 3);
  EXPECT_EQ(backend_.num_copies, 1);
  backend_.memory().Free(lost, kChunk);
}

TEST_F(SharedPagesTest, WhoIsLeftWithAPartOfAGroupMovesThatPart) {
  Cache cache = NewCache(2);
  MustAppend(cache, 100, 1, 0);
  MustAppend(cache, 100, 2, 1);
  const Cache copy = Fork(cache, 40);
  cache.reset();
  ASSERT_TRUE(copy->Spill(backend_, host_).ok());
  EXPECT_EQ(NumPages(), 0);
  EXPECT_EQ(static_cast<std::int64_t>(copy->SpilledBytes()), 6 * PageBytes());
  ASSERT_TRUE(copy->Restore(backend_).ok());
  EXPECT_EQ(Contents(copy, 1), Runs({{40, 2}}));
  EXPECT_EQ(NumPages(), 6);
}

TEST_F(SharedPagesTest, AllAreLostWithTheirDevice) {
  const Cache cache = NewCache();
  MustAppend(cache, 40, 1);
  const Cache copy = Fork(cache, 40), spilled = Fork(cache, 40);
  MustAppend(spilled, 10, 2);
  ASSERT_TRUE(spilled->Spill(backend_, host_).ok());
  pool_.LoseAll();
  EXPECT_TRUE(cache->is_lost());
  EXPECT_TRUE(copy->is_lost());
  EXPECT_TRUE(spilled->is_lost()) << "what it has in common with the others is gone";
  backend_.memory().Free(At(*cache, 0), kChunk);  // the start of the only chunk
}

// --- Memory ---

// Each allocation of a change fails in turn.
TEST_F(SharedPagesTest, AChangeThatMemoryIsOutForChangesNothing) {
  enum { kFork, kTruncate, kReorder, kSpill };
  for (const int kind : {kFork, kTruncate, kReorder, kSpill}) {
    for (int n = 1;; ++n) {
      SCOPED_TRACE(::testing::Message() << "change " << kind << ", allocation " << n);
      std::vector<Cache> caches = {NewCache(2), NewCache(2)};
      for (std::uint32_t layer : {0, 1}) MustAppend(caches[0], 40, 1, layer);
      const Cache elder = Fork(caches[0], 40);
      for (std::uint32_t layer : {0, 1}) MustAppend(caches[0], 30, 2, layer);
      MustAppend(caches[1], 3, 3);
      Cache copy = factory_.CreateLike(*caches[0]);
      const auto apply = [&] {
        const std::vector<std::size_t> sources = {0, 0};
        if (kind == kFork) caches[0]->ForkTo(*copy, 45);
        if (kind == kTruncate) caches[0]->Truncate(17);
        if (kind == kReorder) KvCache::Reorder(caches, sources);
        if (kind == kSpill) caches[0]->Spill(backend_, host_).IgnoreError();
      };
      bool has_failed = false;
      {
        FailingAllocation failing(n);
        try {
          apply();
        } catch (const std::bad_alloc&) {
        }
        has_failed = failing.has_failed();
      }
      if (!has_failed) break;
      if (caches[0]->is_spilled()) {
        ASSERT_TRUE(caches[0]->Restore(backend_).ok());
      }
      EXPECT_EQ(Contents(caches[0]), Runs({{40, 1}, {30, 2}}));
      EXPECT_EQ(Contents(caches[0], 1), Runs({{40, 1}, {30, 2}}));
      EXPECT_EQ(Contents(caches[1]), Runs({{3, 3}}));
      EXPECT_EQ(Contents(elder), Runs({{40, 1}}));
      EXPECT_EQ(copy->committed_length(), 0);
      apply();
      if (kind != kFork) continue;
      EXPECT_EQ(Contents(copy), Runs({{40, 1}, {5, 2}}));
    }
  }
}

}  // namespace
}  // namespace attention::server
