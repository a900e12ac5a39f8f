#include "server/cache/page_pool.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <random>
#include <set>
#include <thread>

namespace attention::server {
namespace {

constexpr std::size_t kChunk = 4096;

class CountingAllocator final : public MemoryAllocator {
 public:
  void* Allocate(std::size_t bytes) override {
    ++num_allocated;
    return std::aligned_alloc(64, bytes);
  }
  void Free(void* memory, std::size_t) override {
    ++num_freed;
    std::free(memory);
  }
  int num_allocated = 0;
  int num_freed = 0;
};

TEST(PagePoolTest, HandsOutDistinctPagesUpToItsCapacityAndNotOneMore) {
  CountingAllocator memory;
  PagePool pool(memory, 3 * kChunk, kChunk);
  std::set<void*> pages;
  while (void* page = pool.Allocate(1024)) pages.insert(page);
  EXPECT_EQ(pages.size(), 12u);
  EXPECT_EQ(pool.used_bytes(), 3 * kChunk);
  EXPECT_EQ(pool.free_bytes(), 0u);
  for (void* page : pages) pool.Free(page, pool.generation());
  EXPECT_EQ(pool.used_bytes(), 0u);
  EXPECT_EQ(pool.free_bytes(), 3 * kChunk);
}

TEST(PagePoolTest, AnEmptiedChunkServesPagesOfAnotherSize) {
  CountingAllocator memory;
  PagePool pool(memory, kChunk, kChunk);
  void* small = pool.Allocate(512);
  EXPECT_EQ(pool.Allocate(2048), nullptr);
  pool.Free(small, pool.generation());
  void* large = pool.Allocate(2048);
  EXPECT_NE(large, nullptr);
  EXPECT_EQ(memory.num_allocated, 1);
  pool.Free(large, pool.generation());
}

TEST(PagePoolTest, GivesItsMemoryBackAtTheEnd) {
  CountingAllocator memory;
  {
    PagePool pool(memory, 2 * kChunk, kChunk);
    void* a = pool.Allocate(kChunk);
    void* b = pool.Allocate(kChunk);
    pool.Free(a, pool.generation());
    pool.Free(b, pool.generation());
  }
  EXPECT_EQ(memory.num_freed, memory.num_allocated);
}

TEST(PagePoolTest, CanAllocateCountsPartlyUsedChunks) {
  CountingAllocator memory;
  PagePool pool(memory, 2 * kChunk, kChunk);
  void* page = pool.Allocate(1024);
  EXPECT_TRUE(pool.CanAllocate(1024, 7));
  EXPECT_FALSE(pool.CanAllocate(1024, 8));
  EXPECT_TRUE(pool.CanAllocate(2048, 2));
  EXPECT_FALSE(pool.CanAllocate(2048, 3));
  pool.Free(page, pool.generation());
}

TEST(PagePoolTest, RandomUseNeverOverlapsAndEndsEmpty) {
  CountingAllocator memory;
  PagePool pool(memory, 8 * kChunk, kChunk);
  std::mt19937 random(7);
  std::map<std::byte*, std::size_t> live;
  for (int i = 0; i < 5000; ++i) {
    if (random() % 2 == 0) {
      const std::size_t bytes = 256u << (random() % 4);
      if (auto* page = static_cast<std::byte*>(pool.Allocate(bytes))) {
        auto next = live.lower_bound(page);
        ASSERT_TRUE(next == live.end() || page + bytes <= next->first);
        ASSERT_TRUE(next == live.begin() ||
                    std::prev(next)->first + std::prev(next)->second <= page);
        live[page] = bytes;
      }
    } else if (!live.empty()) {
      auto victim = std::next(live.begin(), random() % live.size());
      pool.Free(victim->first, pool.generation());
      live.erase(victim);
    }
  }
  for (const auto& [page, bytes] : live) pool.Free(page, pool.generation());
  EXPECT_EQ(pool.used_bytes(), 0u);
  EXPECT_EQ(pool.free_bytes(), pool.capacity_bytes());
}

TEST(PagePoolTest, LostMemoryIsForgottenAndNeverGivenBack) {
  CountingAllocator memory;
  void* lost[2];
  {
    PagePool pool(memory, 2 * kChunk, kChunk);
    lost[0] = pool.Allocate(kChunk);
    lost[1] = pool.Allocate(kChunk);
    const int generation = pool.generation();
    pool.LoseAll();
    EXPECT_EQ(pool.used_bytes(), 0u);
    EXPECT_EQ(pool.free_bytes(), pool.capacity_bytes());
    void* page = pool.Allocate(kChunk);
    pool.Free(lost[0], generation);
    pool.Free(lost[1], generation);
    EXPECT_EQ(pool.used_bytes(), kChunk) << "what others hold now is not theirs to free";
    pool.Free(page, pool.generation());
  }
  EXPECT_EQ(memory.num_freed, 1);
  for (void* page : lost) std::free(page);
}

TEST(PagePoolTest, ThreadsShareIt) {
  CountingAllocator memory;
  PagePool pool(memory, 16 * kChunk, kChunk);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&pool, t] {
      for (int i = 0; i < 500; ++i) {
        void* page = pool.Allocate(256u << (t % 3));
        if (page == nullptr) continue;
        static_cast<char*>(page)[0] = static_cast<char>(t);
        pool.Free(page, pool.generation());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(pool.used_bytes(), 0u);
}

// --- Pages that change hands ---

constexpr TenantMark kA = 1, kB = 2;

void* Poisoned(PagePool& pool, std::size_t bytes, TenantMark owner) {
  void* page = pool.Allocate(bytes, owner);
  std::memset(page, 0x5A, bytes);
  return page;
}

bool IsAll(const void* page, std::size_t bytes, char value) {
  const char* begin = static_cast<const char*>(page);
  return std::all_of(begin, begin + bytes, [value](char byte) { return byte == value; });
}

TEST(PagePoolTest, AnotherTenantsPageComesEmptyAndOnesOwnAsItWas) {
  CountingAllocator memory;
  PagePool pool(memory, kChunk, kChunk);
  void* kept = pool.Allocate(1024, kA);
  EXPECT_TRUE(IsAll(kept, 1024, 0)) << "the process's memory is nobody's";
  void* page = Poisoned(pool, 1024, kA);
  pool.Free(page, pool.generation(), kA);
  EXPECT_EQ(pool.Allocate(1024, kA), page);
  EXPECT_TRUE(IsAll(page, 1024, 0x5A)) << "nothing is written where nothing changes hands";
  pool.Free(page, pool.generation(), kA);
  EXPECT_EQ(pool.Allocate(1024, kB), page);
  EXPECT_TRUE(IsAll(page, 1024, 0));
  pool.Free(page, pool.generation(), kB);
  pool.Free(kept, pool.generation(), kA);
}

TEST(PagePoolTest, PagesOfAnotherSizeInAFormerChunkComeEmpty) {
  CountingAllocator memory;
  PagePool pool(memory, kChunk, kChunk);
  void* of_a = Poisoned(pool, 1024, kA);
  void* of_b = Poisoned(pool, 1024, kB);
  pool.Free(of_a, pool.generation(), kA);
  pool.Free(of_b, pool.generation(), kB);
  void* whole = pool.Allocate(kChunk, kA);
  EXPECT_TRUE(IsAll(whole, kChunk, 0)) << "parts of it were another's";
  std::memset(whole, 0x5A, kChunk);
  pool.Free(whole, pool.generation(), kA);
  void* part = pool.Allocate(512, kA);
  EXPECT_TRUE(IsAll(part, 512, 0x5A)) << "all of it was its own";
  pool.Free(part, pool.generation(), kA);
  part = pool.Allocate(256, kB);
  EXPECT_TRUE(IsAll(part, 256, 0));
  pool.Free(part, pool.generation(), kB);
}

}  // namespace
}  // namespace attention::server
