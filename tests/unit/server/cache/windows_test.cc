// Layers with windows: the pages that go and those that stay, of a cache alone and of caches that
// share them; and layers whose shapes differ.
#include <gmock/gmock.h>

#include <algorithm>
#include <memory>
#include <numeric>
#include <span>
#include <vector>

#include "kernels/base/divide.h"
#include "kernels/cpu/cpu_backend.h"
#include "server/base/error_reason.h"
#include "server/cache/kv_cache_factory.h"
#include "tests/support/forwarding_backend.h"

namespace attention::server {
namespace {

using Cache = std::shared_ptr<KvCache>;

constexpr std::size_t kChunk = std::size_t{1} << 14;
constexpr std::int64_t kPageSize = 16;
constexpr KvGeometry kGeometry{1, 8, 8, DType::kFloat32};

LayerShape WithWindow(std::int64_t window, std::int64_t sinks = 0) {
  return {kGeometry, window, sinks};
}

class WindowsTest : public ::testing::Test {
 protected:
  ~WindowsTest() override {
    EXPECT_EQ(pool_.used_bytes() + host_.used_bytes(), 0u) << "a page is left";
    EXPECT_EQ(ledger_.HeldBy("a"), 0);
  }

  Cache NewCache(std::vector<LayerShape> layers) {
    return *factory_.Create(CacheShape(std::move(layers)), 0, "a");
  }
  Cache Fork(const Cache& cache, std::int64_t length) {
    Cache copy = factory_.CreateLike(*cache);
    cache->ForkTo(*copy, length);
    return copy;
  }
  // A step, as the engine makes it. Each token has its position in its page and as its checksum.
  absl::Status Append(KvCache& cache, std::int64_t num_tokens, int layer = 0) {
    const std::int64_t begin = cache.length(layer), end = begin + num_tokens;
    if (absl::Status status = cache.OwnTail(backend_, layer); !status.ok()) return status;
    if (absl::Status status = cache.Extend(layer, end); !status.ok()) return status;
    for (std::int64_t token = begin; token < end; ++token) At(cache, token, layer) = Content(token);
    cache.Append(layer, Checksums(begin, end));
    cache.LetGo(layer, begin);
    return absl::OkStatus();
  }
  static std::uint32_t Content(std::int64_t token) { return static_cast<std::uint32_t>(token + 1); }
  static std::vector<std::uint32_t> Checksums(std::int64_t begin, std::int64_t end) {
    std::vector<std::uint32_t> checksums(static_cast<std::size_t>(end - begin));
    std::iota(checksums.begin(), checksums.end(), Content(begin));
    return checksums;
  }
  static std::uint32_t& At(const KvCache& cache, std::int64_t token, int layer = 0) {
    void* page = cache.View(layer).pages[token / kPageSize];
    return static_cast<std::uint32_t*>(page)[token % kPageSize];
  }

  // The layer has what was appended to it, and nothing else.
  static void ExpectKept(const KvCache& cache, std::int64_t first, int layer = 0) {
    const std::int64_t length = cache.length(layer), sink_end = cache.sink_end(layer);
    ASSERT_EQ(cache.first_position(layer), first);
    const PagedKvView view = cache.View(layer);
    for (std::int64_t page = 0; page < CeilDiv(length, kPageSize); ++page) {
      const bool is_kept = page * kPageSize < sink_end || page * kPageSize >= first;
      ASSERT_EQ(view.pages[page] != nullptr, is_kept) << "page " << page << " of " << length;
    }
    for (std::int64_t token = 0; token < length; ++token) {
      if (token >= sink_end && token < first) continue;
      ASSERT_EQ(At(cache, token, layer), Content(token));
    }
    EXPECT_TRUE(cache.Holds(layer, first, Checksums(first, length)));
    if (length > first) {
      std::vector<std::uint32_t> others = Checksums(first, length);
      ++others.back();
      EXPECT_FALSE(cache.Holds(layer, first, others));
    }
  }
  static std::int64_t NumKept(const KvCache& cache, int layer = 0) {
    const PagedKvView view = cache.View(layer);
    return view.num_pages - std::count(view.pages, view.pages + view.num_pages, nullptr);
  }
  std::int64_t PageBytes() const {
    return static_cast<std::int64_t>(backend_.PageLayout(kGeometry, kPageSize).page_bytes);
  }
  // Pages on the device, which count for their owner.
  std::int64_t NumPages() const {
    EXPECT_EQ(static_cast<std::int64_t>(pool_.used_bytes()), ledger_.HeldBy("a"));
    return static_cast<std::int64_t>(pool_.used_bytes()) / PageBytes();
  }

  testing::ForwardingBackend backend_;
  PagePool pool_{backend_.memory(), 8 * kChunk, kChunk};
  PagePool host_{backend_.memory(), 8 * kChunk, kChunk};
  TenantLimitsTable limits_;
  TenantLedger ledger_{TenantLimit::kKvBytes, &TenantLimits::kv_bytes, limits_};
  KvCacheFactory factory_{{{backend_, pool_}}, kPageSize, &ledger_};
};

// The first token that a step at `position` leaves behind the sinks.
std::int64_t FirstAfter(const LayerShape& shape, std::int64_t position) {
  const std::int64_t first =
      RoundDown(std::max<std::int64_t>(0, position - shape.window_tokens), kPageSize);
  return first > RoundUp(shape.sink_tokens, kPageSize) ? first : 0;
}

struct WindowCase {
  std::int64_t window, sinks, step;
};
class WindowEdgesTest : public WindowsTest, public ::testing::WithParamInterface<WindowCase> {};

TEST_P(WindowEdgesTest, ALayerKeepsThePagesThatALaterQueryCanSee) {
  const LayerShape shape = WithWindow(GetParam().window, GetParam().sinks);
  const Cache cache = NewCache({shape});
  std::int64_t most = 0;
  while (cache->length(0) < 200) {
    const std::int64_t position = cache->length(0);
    ASSERT_TRUE(Append(*cache, GetParam().step).ok());
    ExpectKept(*cache, FirstAfter(shape, position));
    EXPECT_EQ(NumPages(), NumKept(*cache));
    EXPECT_EQ(cache->kv_bytes(), NumPages() * PageBytes());
    most = std::max(most, NumPages());
  }
  const std::int64_t sink_pages = CeilDiv(shape.sink_tokens, kPageSize);
  EXPECT_LE(most, sink_pages + CeilDiv(shape.window_tokens + GetParam().step, kPageSize) + 1);
}

INSTANTIATE_TEST_SUITE_P(Edges, WindowEdgesTest,
                         ::testing::Values(WindowCase{1, 0, 1}, WindowCase{1, 1, 1},
                                           WindowCase{15, 0, 1}, WindowCase{16, 0, 1},
                                           WindowCase{17, 0, 1}, WindowCase{16, 16, 1},
                                           WindowCase{16, 17, 1}, WindowCase{33, 5, 1},
                                           WindowCase{100, 0, 1}, WindowCase{1, 0, 16},
                                           WindowCase{16, 1, 16}, WindowCase{17, 3, 15},
                                           WindowCase{20, 0, 50}, WindowCase{500, 4, 20}));

TEST_F(WindowsTest, TheLastStepCanBeRepeatedAndTakenBack) {
  for (std::int64_t length = 1; length < 120; ++length) {
    const Cache cache = NewCache({WithWindow(24, 2)});
    ASSERT_TRUE(Append(*cache, length).ok());
    ASSERT_TRUE(Append(*cache, 5).ok());
    EXPECT_TRUE(cache->Holds(0, length, Checksums(length, length + 5)));
    for (const std::int64_t to : {length + 5, length + 3, length}) {
      ASSERT_TRUE(cache->CanGoOnAt(0, to));
      cache->Truncate(to);
      ExpectKept(*cache, FirstAfter(WithWindow(24, 2), length));
    }
    ASSERT_TRUE(Append(*cache, 1).ok());
    ExpectKept(*cache, FirstAfter(WithWindow(24, 2), length));
    EXPECT_EQ(NumPages(), NumKept(*cache));
  }
}

TEST_F(WindowsTest, BeforeTheOldestTokenALayerCannotGoOnButFromTheStart) {
  const Cache cache = NewCache({WithWindow(20), {kGeometry}});
  for (int i = 0; i < 10; ++i) {
    ASSERT_TRUE(Append(*cache, 10, 0).ok());
    ASSERT_TRUE(Append(*cache, 10, 1).ok());
  }
  ASSERT_EQ(cache->first_position(0), 64) << "90 - 20, rounded to a page";
  EXPECT_TRUE(cache->CanGoOnAt(0, 84));
  EXPECT_FALSE(cache->CanGoOnAt(0, 83));
  EXPECT_FALSE(cache->CanGoOnAt(0, 1));
  EXPECT_TRUE(cache->CanGoOnAt(1, 1)) << "it has no window";
  ASSERT_TRUE(cache->CanGoOnAt(0, 0));
  cache->Truncate(0);
  EXPECT_EQ(NumPages(), 0);
  ASSERT_TRUE(Append(*cache, 40, 0).ok());
  ExpectKept(*cache, 0);
}

TEST_F(WindowsTest, AFailedStepIsTakenBackWithoutATrace) {
  const Cache cache = NewCache({WithWindow(20)});
  for (int i = 0; i < 9; ++i) ASSERT_TRUE(Append(*cache, 10).ok());
  const std::int64_t first = cache->first_position(0);
  ASSERT_TRUE(cache->Extend(0, 130).ok());
  cache->Append(0, Checksums(90, 130));
  cache->TakeBack(0, 90);
  ExpectKept(*cache, first);
  ASSERT_TRUE(Append(*cache, 10).ok());
  ExpectKept(*cache, FirstAfter(WithWindow(20), 90));
}

// --- Sharing

TEST_F(WindowsTest, ASourceThatGoesOnLetsItsPagesGoAndTheCopyKeepsThem) {
  const Cache cache = NewCache({WithWindow(32), {kGeometry}});
  ASSERT_TRUE(Append(*cache, 32, 0).ok());
  ASSERT_TRUE(Append(*cache, 32, 1).ok());
  const Cache copy = Fork(cache, 32);
  EXPECT_EQ(NumPages(), 4) << "they have the same pages";
  for (int i = 0; i < 8; ++i) {
    ASSERT_TRUE(Append(*cache, 16, 0).ok());
    ASSERT_TRUE(Append(*cache, 16, 1).ok());
  }
  EXPECT_EQ(NumKept(*cache, 0), 3);
  ExpectKept(*copy, 0);
  ExpectKept(*copy, 0, 1);
  EXPECT_EQ(NumPages(), 2 + 3 + 10) << "two that the copy alone has in its window";
  ASSERT_TRUE(Append(*copy, 64, 0).ok());
  ASSERT_TRUE(Append(*copy, 1, 0).ok());
  ExpectKept(*copy, 64);
  EXPECT_EQ(NumPages(), 3 + 3 + 10) << "and lets go in turn";
}

TEST_F(WindowsTest, ACopyTakesWhatItsLengthNeeds) {
  const Cache cache = NewCache({WithWindow(32, 1)});
  ASSERT_TRUE(Append(*cache, 320).ok());
  EXPECT_EQ(NumKept(*cache), 20) << "a prompt in one step";
  const Cache copy = Fork(cache, 320), shorter = Fork(cache, 200);
  ExpectKept(*copy, 288);
  ExpectKept(*shorter, 160);
  EXPECT_EQ(NumKept(*shorter), 1 + 3);
  EXPECT_EQ(NumPages(), 20);
  ExpectKept(*cache, 0);
  const_cast<Cache&>(cache).reset();
  EXPECT_EQ(NumPages(), 1 + 2 + 3) << "the sinks, and a window for each";
}

TEST_F(WindowsTest, WhoAppendsToASharedPageGetsACopyOfIt) {
  const Cache cache = NewCache({WithWindow(40)});
  ASSERT_TRUE(Append(*cache, 100).ok());
  ASSERT_TRUE(Append(*cache, 4).ok());
  const Cache copy = Fork(cache, 104), other = Fork(cache, 101);
  EXPECT_EQ(cache->CopyBytes(0), static_cast<std::size_t>(PageBytes()));
  ASSERT_TRUE(Append(*cache, 1).ok());
  ASSERT_TRUE(Append(*other, 2).ok());
  ExpectKept(*copy, 64);
  ExpectKept(*cache, FirstAfter(WithWindow(40), 104));
  ExpectKept(*other, 48);
  EXPECT_EQ(copy->CopyBytes(0), 0u) << "it is the last one that has it";
  ASSERT_TRUE(Append(*copy, 3).ok());
  ExpectKept(*copy, 64);
}

TEST_F(WindowsTest, AReorderLeavesEachWhatItsSourceHad) {
  std::vector<Cache> beams = {NewCache({WithWindow(16)})};
  for (int i = 0; i < 6; ++i) ASSERT_TRUE(Append(*beams[0], 10).ok());
  for (int i = 0; i < 2; ++i) beams.push_back(factory_.CreateLike(*beams[0]));
  const std::int64_t first = beams[0]->first_position(0);
  KvCache::Reorder(beams, std::vector<std::size_t>{0, 0, 0});
  for (const Cache& beam : beams) {
    ExpectKept(*beam, first);
    EXPECT_TRUE(beam->CanGoOnAt(0, 50)) << "the last step can be taken back";
  }
  EXPECT_EQ(NumPages(), NumKept(*beams[0]));
  for (const Cache& beam : beams) {
    ASSERT_TRUE(Append(*beam, 30).ok());
    ExpectKept(*beam, FirstAfter(WithWindow(16), 60));
  }
}

TEST_F(WindowsTest, PagesOnTheHostAreThoseThatNobodyElseHas) {
  const Cache cache = NewCache({WithWindow(32, 1), {kGeometry}});
  for (int i = 0; i < 10; ++i) {
    ASSERT_TRUE(Append(*cache, 10, 0).ok());
    ASSERT_TRUE(Append(*cache, 10, 1).ok());
  }
  Cache copy = Fork(cache, 100);
  ASSERT_TRUE(Append(*cache, 20, 0).ok());
  const std::int64_t own = NumPages() - NumKept(*copy, 0) - NumKept(*copy, 1);
  EXPECT_EQ(cache->SpillableBytes(), static_cast<std::size_t>(own * PageBytes()));
  ASSERT_TRUE(cache->Spill(backend_, host_).ok());
  EXPECT_EQ(host_.used_bytes(), static_cast<std::size_t>(own * PageBytes()));
  EXPECT_EQ(NumPages(), NumKept(*copy, 0) + NumKept(*copy, 1));
  copy.reset();
  ASSERT_TRUE(cache->Restore(backend_).ok());
  ExpectKept(*cache, FirstAfter(WithWindow(32, 1), 100));
  ExpectKept(*cache, 0, 1);
  EXPECT_EQ(cache->kv_bytes(), NumPages() * PageBytes());
  ASSERT_TRUE(cache->Spill(backend_, host_).ok());
  EXPECT_EQ(NumPages(), 0) << "all are its own now";
  ASSERT_TRUE(cache->Restore(backend_).ok());
  ASSERT_TRUE(Append(*cache, 40, 0).ok());
  ExpectKept(*cache, FirstAfter(WithWindow(32, 1), 120));
}

TEST_F(WindowsTest, PagesThatGoCountForNobody) {
  const Cache cache = NewCache({WithWindow(16)});
  limits_.Replace({{.kv_bytes = 3 * PageBytes()}, {}});
  for (int i = 0; i < 300; ++i) {
    const absl::Status status = Append(*cache, 1);
    ASSERT_TRUE(status.ok()) << status << " at " << i;
  }
  EXPECT_EQ(GetErrorDetail(Append(*cache, 40))->reason, "QUOTA_EXCEEDED");
  ExpectKept(*cache, FirstAfter(WithWindow(16), 299));
}

TEST_F(WindowsTest, PagesThatGoAreOthersAtOnce) {
  const Cache cache = NewCache({WithWindow(16)}), other = NewCache({{kGeometry}});
  ASSERT_TRUE(Append(*cache, 64).ok());
  std::vector<void*> before(cache->View(0).pages, cache->View(0).pages + 4);
  ASSERT_TRUE(Append(*cache, 1).ok());
  ASSERT_TRUE(Append(*other, 48).ok());
  EXPECT_THAT(std::vector<void*>(other->View(0).pages, other->View(0).pages + 3),
              ::testing::UnorderedElementsAreArray(before.begin(), before.begin() + 3));
  ExpectKept(*cache, 48);
}

// --- Shapes

TEST_F(WindowsTest, CachesOfOneShapeShareIt) {
  const std::vector<LayerShape> layers(60, WithWindow(64));
  const Cache cache = NewCache(layers), same = NewCache(layers);
  EXPECT_EQ(cache->layout(), same->layout());
  EXPECT_EQ(factory_.CreateLike(*cache)->layout(), cache->layout());
  const Cache uniform = *factory_.Create(CacheShape(WithWindow(64), 60), 0, "a");
  EXPECT_EQ(uniform->shape(), cache->shape());
  EXPECT_NE(uniform->layout(), cache->layout()) << "it was said in another way";
}

TEST_F(WindowsTest, ExpectedTokensAreThoseThatAWindowKeeps) {
  EXPECT_TRUE(factory_.Create(CacheShape({WithWindow(64)}), 1 << 20).ok());
  EXPECT_EQ(
      GetErrorDetail(factory_.Create(CacheShape({WithWindow(64), {kGeometry}}), 1 << 20).status())
          ->reason,
      "KV_EXHAUSTED");
}

TEST(LayerShapesTest, PagesAreAsLargeAsTheirLayersAllow) {
  const auto backend = *cpu::MakeCpuBackend({.num_threads = 1});
  PagePool pool(backend->memory(), std::size_t{64} << 20);
  const KvCacheFactory factory({{*backend, pool}}, /*page_size=*/64);
  const auto cache = *factory.Create(CacheShape({{{2, 64, 64, DType::kBFloat16}},
                                                 {{32, 256, 256, DType::kFloat32}},  // 4 MiB
                                                 {{2, 64, 64, DType::kBFloat16}, 4096},
                                                 {{2, 64, 64, DType::kBFloat16}, 512},
                                                 {{2, 64, 64, DType::kBFloat16}, 100}}),
                                     0);
  std::vector<std::int64_t> sizes;
  for (int layer = 0; layer < cache->num_layers(); ++layer) {
    sizes.push_back(cache->layout()->page_size(layer));
    EXPECT_LE(cache->layout()->page_bytes(layer), pool.chunk_bytes());
  }
  EXPECT_THAT(sizes, ::testing::ElementsAre(64, 32, 64, 32, 16));
}

// Gives addresses, and no memory behind them.
class AddressesAlone final : public MemoryAllocator {
 public:
  void* Allocate(std::size_t bytes) override {
    next_ += bytes;
    return reinterpret_cast<void*>(next_ - bytes);
  }
  void Free(void*, std::size_t) override {}
  void Zero(void*, std::size_t) override {}

 private:
  std::uintptr_t next_ = std::uintptr_t{1} << 40;
};

// Sixty layers, of which every sixth sees all tokens, token by token beside one shape for all.
TEST(LayerShapesTest, AModelWithWindowsTakesLessThanHalfAtAnyLength) {
  const auto backend = *cpu::MakeCpuBackend({.num_threads = 1});
  AddressesAlone memory;
  PagePool pool(memory, std::size_t{1} << 40);
  const KvCacheFactory factory({{*backend, pool}}, /*page_size=*/64);
  std::vector<LayerShape> layers(60, {{16, 256, 256, DType::kBFloat16}, 1024});
  for (std::size_t i = 5; i < layers.size(); i += 6) layers[i] = {{4, 512, 512, DType::kBFloat16}};
  const auto shaped = *factory.Create(CacheShape(layers), 0);
  const auto uniform = *factory.Create({16, 512, 512, DType::kBFloat16}, 60, 0);
  const auto append = [&](KvCache& cache, std::size_t num_tokens) {
    const std::vector<std::uint32_t> checksums(num_tokens);
    for (int layer = 0; layer < cache.num_layers(); ++layer) {
      const std::int64_t begin = cache.length(layer);
      ASSERT_TRUE(cache.Extend(layer, begin + static_cast<std::int64_t>(num_tokens)).ok());
      cache.Append(layer, checksums);
      cache.LetGo(layer, begin);
    }
  };
  const auto ratio = [&] {
    return static_cast<double>(uniform->kv_bytes()) / static_cast<double>(shaped->kv_bytes());
  };
  while (shaped->committed_length() < 32768) {
    const std::size_t num_tokens = shaped->committed_length() < 1500 ? 1 : 61;
    append(*shaped, num_tokens);
    append(*uniform, num_tokens);
    ASSERT_GE(ratio(), 2.1) << shaped->committed_length();
  }
  EXPECT_GE(ratio(), 17);
  EXPECT_EQ(static_cast<std::int64_t>(pool.used_bytes()), shaped->kv_bytes() + uniform->kv_bytes());
}

}  // namespace
}  // namespace attention::server
