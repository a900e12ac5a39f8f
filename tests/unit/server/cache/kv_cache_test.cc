#include "server/cache/kv_cache.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cstring>
#include <span>
#include <vector>

#include "kernels/reference/reference_backend.h"
#include "server/base/error_reason.h"
#include "server/cache/kv_cache_factory.h"

namespace attention::server {
namespace {

using ::testing::HasSubstr;

constexpr std::size_t kChunk = std::size_t{1} << 16;
constexpr KvGeometry kGeometry{2, 8, 8, DType::kFloat32};

class KvCacheTest : public ::testing::Test {
 protected:
  std::unique_ptr<AttentionBackend> backend_ = reference::MakeReferenceBackend();
  PagePool pool_{backend_->memory(), 4 * kChunk, kChunk};
  KvCacheFactory factory_{{{*backend_, pool_}}, /*page_size=*/16};
};

TEST_F(KvCacheTest, AppendAcrossAPageBoundaryTakesOneNewPage) {
  auto cache = factory_.Create(kGeometry, 1, 0);
  ASSERT_TRUE(cache.ok());
  ASSERT_TRUE((*cache)->Extend(0, 16).ok());
  EXPECT_EQ((*cache)->View(0).num_pages, 1);
  ASSERT_TRUE((*cache)->Extend(0, 17).ok());
  EXPECT_EQ((*cache)->View(0).num_pages, 2);
  ASSERT_TRUE((*cache)->Extend(0, 32).ok());
  EXPECT_EQ((*cache)->View(0).num_pages, 2);
}

TEST_F(KvCacheTest, LayersHaveLengthsOfTheirOwnAndTheLeastIsCommitted) {
  auto cache = factory_.Create(kGeometry, 3, 0);
  ASSERT_TRUE(cache.ok());
  const std::vector<std::uint32_t> checksums(6);
  (*cache)->Append(0, std::span(checksums).first(5));
  (*cache)->Append(1, std::span(checksums).first(4));
  (*cache)->Append(2, checksums);
  EXPECT_EQ((*cache)->committed_length(), 4);
}

TEST_F(KvCacheTest, ExhaustionLeavesTheCacheAsItWasAndSaysWhatIsMissing) {
  auto cache = factory_.Create(kGeometry, 1, 0);
  ASSERT_TRUE(cache.ok());
  ASSERT_TRUE((*cache)->Extend(0, 16).ok());
  const std::int64_t bytes = (*cache)->kv_bytes();
  const absl::Status status = (*cache)->Extend(0, 1 << 20);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(GetErrorDetail(status)->reason, "KV_EXHAUSTED");
  EXPECT_EQ((*cache)->View(0).num_pages, 1);
  EXPECT_EQ((*cache)->kv_bytes(), bytes);
  EXPECT_EQ(pool_.used_bytes(), static_cast<std::size_t>(bytes));
  EXPECT_TRUE((*cache)->Extend(0, 32).ok());
}

// --- Pages of tenants ---

class TenantPagesTest : public KvCacheTest {
 protected:
  std::shared_ptr<KvCache> NewCache(const std::string& tenant, int num_layers = 1) {
    return *counted_.Create(kGeometry, num_layers, 0, tenant);
  }
  static std::int64_t PageBytes(const KvCache& cache) { return cache.MissingBytes(0, 1); }

  TenantLimitsTable limits_;
  TenantLedger ledger_{TenantLimit::kKvBytes, &TenantLimits::kv_bytes, limits_};
  KvCacheFactory counted_{{{*backend_, pool_}}, /*page_size=*/16, &ledger_};
};

TEST_F(TenantPagesTest, PagesCountForTheirTenantUntilTheyAreFreed) {
  auto first = NewCache("a", 2), second = NewCache("a"), other = NewCache("b");
  const std::int64_t page = PageBytes(*other);
  ASSERT_TRUE(first->Extend(0, 17).ok());
  ASSERT_TRUE(first->Extend(1, 1).ok());
  ASSERT_TRUE(second->Extend(0, 16).ok());
  ASSERT_TRUE(other->Extend(0, 1).ok());
  EXPECT_EQ(ledger_.HeldBy("a"), 4 * page);
  EXPECT_EQ(ledger_.HeldBy("b"), page);
  first.reset();
  EXPECT_EQ(ledger_.HeldBy("a"), page);
  second.reset();
  EXPECT_EQ(ledger_.HeldBy("a"), 0);
  EXPECT_EQ(ledger_.HeldBy("b"), page);
}

TEST_F(TenantPagesTest, AtItsLimitATenantKeepsWhatItHasAndOthersGoOn) {
  const auto cache = NewCache("a"), other = NewCache("b");
  const std::int64_t page = PageBytes(*cache);
  limits_.Replace({{.kv_bytes = 2 * page}, {}});
  ASSERT_TRUE(cache->Extend(0, 17).ok());
  const absl::Status refused = cache->Extend(0, 33);
  EXPECT_EQ(GetErrorDetail(refused)->reason, "QUOTA_EXCEEDED");
  EXPECT_EQ(cache->View(0).num_pages, 2);
  EXPECT_EQ(ledger_.HeldBy("a"), 2 * page);
  EXPECT_EQ(pool_.used_bytes(), static_cast<std::size_t>(2 * page));
  EXPECT_TRUE(cache->Extend(0, 32).ok()) << "its own pages are not full";
  EXPECT_TRUE(other->Extend(0, 32).ok());
}

TEST_F(TenantPagesTest, WhatThePoolRefusesDoesNotCount) {
  const auto cache = NewCache("a");
  EXPECT_EQ(GetErrorDetail(cache->Extend(0, 1 << 20))->reason, "KV_EXHAUSTED");
  EXPECT_EQ(ledger_.HeldBy("a"), 0);
}

TEST_F(TenantPagesTest, ExpectedTokensBeyondTheLimitAreRefusedAtOnce) {
  const std::int64_t page = PageBytes(*NewCache("a"));
  limits_.Replace({{.kv_bytes = 2 * page}, {}});
  EXPECT_TRUE(counted_.Create(kGeometry, 1, 32, "a").ok());
  EXPECT_EQ(GetErrorDetail(counted_.Create(kGeometry, 1, 33, "a").status())->reason,
            "QUOTA_EXCEEDED");
  EXPECT_EQ(ledger_.HeldBy("a"), 0) << "nothing is taken before it is needed";
}

TEST_F(TenantPagesTest, APageOfAnotherTenantComesEmpty) {
  auto first = NewCache("a");
  ASSERT_TRUE(first->Extend(0, 16).ok());
  void* page = first->View(0).pages[0];
  std::memset(page, 0x5A, static_cast<std::size_t>(PageBytes(*NewCache("b"))));
  first.reset();
  const auto second = NewCache("b");
  ASSERT_TRUE(second->Extend(0, 1).ok());
  ASSERT_EQ(second->View(0).pages[0], page);
  const auto* bytes = static_cast<const char*>(page);
  EXPECT_TRUE(std::all_of(bytes, bytes + second->kv_bytes(), [](char b) { return b == 0; }));
}

TEST_F(KvCacheTest, DestructionReturnsEveryPage) {
  {
    auto cache = factory_.Create(kGeometry, 2, 0);
    ASSERT_TRUE(cache.ok());
    ASSERT_TRUE((*cache)->Extend(0, 100).ok());
    ASSERT_TRUE((*cache)->Extend(1, 50).ok());
    EXPECT_GT(pool_.used_bytes(), 0u);
  }
  EXPECT_EQ(pool_.used_bytes(), 0u);
}

TEST_F(KvCacheTest, AnEmptyLayerStillHasAPageTable) {
  auto cache = factory_.Create(kGeometry, 1, 0);
  ASSERT_TRUE(cache.ok());
  EXPECT_NE((*cache)->View(0).pages, nullptr);
  EXPECT_EQ((*cache)->View(0).num_pages, 0);
}

TEST_F(KvCacheTest, PagesShrinkUntilTheyFitAChunk) {
  const auto layout =
      KvCache::ChooseLayout(*backend_, {{32, 64, 64, DType::kFloat32}}, 1024, 1 << 19);
  ASSERT_TRUE(layout.ok());
  EXPECT_EQ(layout->page_size, 32);
  EXPECT_LE(layout->page_bytes, std::size_t{1} << 19);
}

TEST_F(KvCacheTest, AGeometryThatFitsNoChunkIsRefused) {
  const auto cache = factory_.Create({1024, 256, 256, DType::kFloat32}, 1, 0);
  EXPECT_EQ(cache.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(cache.status().message()), HasSubstr("num_kv_heads"));
}

TEST_F(KvCacheTest, ExpectedTokensAreCheckedAgainstTheFreePages) {
  EXPECT_TRUE(factory_.Create(kGeometry, 1, 100).ok());
  const auto cache = factory_.Create(kGeometry, 1, 1 << 20);
  EXPECT_EQ(cache.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(GetErrorDetail(cache.status())->reason, "KV_EXHAUSTED");
}

struct BadGeometry {
  KvGeometry geometry;
  int num_layers;
  const char* field;
};
class BadGeometryTest : public KvCacheTest, public ::testing::WithParamInterface<BadGeometry> {};

TEST_P(BadGeometryTest, IsRefusedByName) {
  const auto cache = factory_.Create(GetParam().geometry, GetParam().num_layers, 0);
  EXPECT_EQ(cache.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(cache.status().message()), HasSubstr(GetParam().field));
}

INSTANTIATE_TEST_SUITE_P(
    Fields, BadGeometryTest,
    ::testing::Values(BadGeometry{{0, 8, 8, DType::kFloat32}, 1, "geometry.num_kv_heads is 0"},
                      BadGeometry{{-1, 8, 8, DType::kFloat32}, 1, "geometry.num_kv_heads is -1"},
                      BadGeometry{{1, 0, 8, DType::kFloat32}, 1, "geometry.head_dim_qk is 0"},
                      BadGeometry{{1, 577, 8, DType::kFloat32}, 1, "geometry.head_dim_qk is 577"},
                      BadGeometry{{1, 8, 513, DType::kFloat32}, 1, "geometry.head_dim_v is 513"},
                      BadGeometry{{1, 8, 8, DType::kFloat32}, 0, "geometry.num_layers is 0"},
                      BadGeometry{
                          {1, 8, 8, DType::kFloat32}, 1025, "geometry.num_layers is 1025"}));

TEST_F(KvCacheTest, ACacheKnowsThatItsDeviceHasLostIt) {
  auto cache = factory_.Create(kGeometry, 1, 0);
  ASSERT_TRUE((*cache)->Extend(0, 16).ok());
  EXPECT_FALSE((*cache)->is_lost());
  void* const lost = (*cache)->View(0).pages[0];  // at the start of its chunk
  pool_.LoseAll();
  EXPECT_TRUE((*cache)->is_lost());
  auto next = factory_.Create(kGeometry, 1, 0);
  EXPECT_FALSE((*next)->is_lost());
  ASSERT_TRUE((*next)->Extend(0, 16).ok());
  cache->reset();
  EXPECT_EQ(static_cast<std::int64_t>(pool_.used_bytes()), (*next)->kv_bytes());
  backend_->memory().Free(lost, kChunk);
}

class SeveralDevicesTest : public ::testing::Test {
 protected:
  int DeviceOfNext() {
    caches_.push_back(*factory_.Create(kGeometry, 1, 0));
    return caches_.back()->device();
  }

  std::unique_ptr<AttentionBackend> backend_ = reference::MakeReferenceBackend();
  PagePool first_{backend_->memory(), 4 * kChunk, kChunk};
  PagePool second_{backend_->memory(), 4 * kChunk, kChunk};
  KvCacheFactory factory_{{{*backend_, first_}, {*backend_, second_}}, /*page_size=*/16};
  std::vector<std::shared_ptr<KvCache>> caches_;
};

TEST_F(SeveralDevicesTest, EmptyCachesAreSpreadEvenly) {
  EXPECT_EQ(DeviceOfNext(), 0);
  EXPECT_EQ(DeviceOfNext(), 1);
  EXPECT_EQ(DeviceOfNext(), 0);
  EXPECT_EQ(DeviceOfNext(), 1);
}

TEST_F(SeveralDevicesTest, ANewCacheGoesWhereLessIsHeld) {
  ASSERT_EQ(DeviceOfNext(), 0);
  ASSERT_TRUE(caches_[0]->Extend(0, 1000).ok());
  EXPECT_EQ(DeviceOfNext(), 1);
  EXPECT_EQ(DeviceOfNext(), 1);
  caches_[0].reset();
  EXPECT_EQ(DeviceOfNext(), 0);
}

TEST_F(SeveralDevicesTest, ALargerDeviceFillsUpBeforeASmallerOneIsUsed) {
  PagePool large(backend_->memory(), 8 * kChunk, kChunk);
  const KvCacheFactory factory({{*backend_, first_}, {*backend_, large}}, /*page_size=*/16);
  std::vector<int> devices;
  for (int i = 0; i < 7; ++i) {
    caches_.push_back(*factory.Create(kGeometry, 1, 0));
    devices.push_back(caches_.back()->device());
  }
  EXPECT_THAT(devices, ::testing::ElementsAre(1, 1, 1, 1, 0, 1, 0));
  caches_.clear();
}

TEST_F(SeveralDevicesTest, BytesAreThoseOfAllDevices) {
  EXPECT_EQ(factory_.capacity_bytes(), static_cast<std::int64_t>(8 * kChunk));
  ASSERT_EQ(DeviceOfNext(), 0);
  ASSERT_TRUE(caches_[0]->Extend(0, 1).ok());
  EXPECT_EQ(factory_.free_bytes(), static_cast<std::int64_t>(7 * kChunk));
  EXPECT_EQ(factory_.used_bytes(), caches_[0]->kv_bytes());
}

}  // namespace
}  // namespace attention::server
