#include "server/memory/buffer_pool.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <thread>
#include <utility>

#include "absl/strings/string_view.h"
#include "tests/support/failing_new.h"

namespace attention::server {
namespace {

constexpr TenantMark kOwner = 7;

// Counts what is allocated; may be out of memory.
class CountingMemory final : public MemoryAllocator {
 public:
  void* Allocate(std::size_t bytes) override {
    if (is_exhausted) return nullptr;
    ++allocations;
    allocated_bytes += bytes;
    return std::aligned_alloc(64, (bytes + 63) / 64 * 64);
  }
  void Free(void* memory, std::size_t bytes) override {
    allocated_bytes -= bytes;
    std::free(memory);
  }

  bool is_exhausted = false;
  int allocations = 0;
  std::size_t allocated_bytes = 0;
};

TEST(BufferPoolTest, ABufferReturnsAlsoWhenThereIsNoMemoryToNoteIt) {
  CountingMemory memory;
  BufferPool pool(memory, 1 << 20);
  PooledBuffer buffer = pool.Get(5000, kOwner);
  {
    attention::testing::FailingAllocation failing(1);
    buffer = {};
    EXPECT_TRUE(failing.has_failed());
  }
  EXPECT_EQ(pool.used_bytes(), 0u);
  EXPECT_EQ(pool.idle_bytes(), 0u);
  EXPECT_EQ(memory.allocated_bytes, 0u);
  pool.Get(5000, kOwner);
  EXPECT_GT(pool.idle_bytes(), 0u) << "kept again";
}

TEST(BufferPoolTest, ABufferIsHandedOutAgain) {
  CountingMemory memory;
  BufferPool pool(memory, 1 << 20);
  const char* first = pool.Get(5000, kOwner).data();
  EXPECT_EQ(pool.used_bytes(), 0u);
  EXPECT_EQ(pool.Get(4500, kOwner).data(), first) << "of the same step";
  EXPECT_EQ(memory.allocations, 1);
}

TEST(BufferPoolTest, AtMostAQuarterIsWasted) {
  CountingMemory memory;
  BufferPool pool(memory, 0);
  for (std::size_t bytes = 4096; bytes < (std::size_t{1} << 24); bytes += bytes / 7 + 1) {
    const PooledBuffer buffer = pool.Get(bytes, kOwner);
    EXPECT_GE(buffer.capacity(), bytes);
    EXPECT_LE(buffer.capacity(), bytes + bytes / 4);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(buffer.data()) % 64, 0u);
  }
}

TEST(BufferPoolTest, IdleMemoryIsBounded) {
  CountingMemory memory;
  {
    BufferPool pool(memory, 10000);
    {
      const PooledBuffer first = pool.Get(8192, kOwner);
      const PooledBuffer second = pool.Get(8192, kOwner);
      EXPECT_EQ(pool.used_bytes(), 16384u);
    }
    EXPECT_EQ(pool.idle_bytes(), 8192u) << "one is kept, the other has no room";
    EXPECT_EQ(memory.allocated_bytes, 8192u);
  }
  EXPECT_EQ(memory.allocated_bytes, 0u);
}

TEST(BufferPoolTest, OutOfMemoryThrowsAndLeavesThePoolAsItWas) {
  CountingMemory memory;
  BufferPool pool(memory, 1 << 20);
  memory.is_exhausted = true;
  EXPECT_THROW(pool.Get(1, kOwner), std::bad_alloc);
  EXPECT_THROW(pool.Get(~std::size_t{0}, kOwner), std::bad_alloc);
  EXPECT_EQ(pool.used_bytes(), 0u);
  memory.is_exhausted = false;
  EXPECT_NE(pool.Get(1, kOwner).data(), nullptr);
}

TEST(BufferPoolTest, ThePoolWaitsForBuffersThatOthersStillHold) {
  CountingMemory memory;
  std::thread holder;
  {
    BufferPool pool(memory, 1 << 20);
    holder = std::thread([buffer = pool.Get(100, kOwner)]() mutable {
      std::this_thread::yield();
      const PooledBuffer returned = std::move(buffer);
    });
  }
  EXPECT_EQ(memory.allocated_bytes, 0u);
  holder.join();
}

TEST(BufferPoolTest, ThreadsNeverShareABuffer) {
  constexpr int kRounds = 2000;
  std::mutex mutex;  // CountingMemory's counts are plain
  class LockedMemory final : public MemoryAllocator {
   public:
    explicit LockedMemory(std::mutex& mutex) : mutex_(mutex) {}
    void* Allocate(std::size_t bytes) override {
      const std::lock_guard<std::mutex> lock(mutex_);
      return memory_.Allocate(bytes);
    }
    void Free(void* memory, std::size_t bytes) override {
      const std::lock_guard<std::mutex> lock(mutex_);
      memory_.Free(memory, bytes);
    }

   private:
    std::mutex& mutex_;
    CountingMemory memory_;
  } memory(mutex);
  BufferPool pool(memory, 1 << 20);
  const auto use = [&pool](char mark) {
    for (int round = 0; round < kRounds; ++round) {
      const PooledBuffer buffer = pool.Get(4096, kOwner);
      std::memset(buffer.data(), mark, 4096);
      for (int i = 0; i < 4096; i += 512) ASSERT_EQ(buffer.data()[i], mark);
    }
  };
  std::thread first(use, 'a');
  std::thread second(use, 'b');
  first.join();
  second.join();
  EXPECT_EQ(pool.used_bytes(), 0u);
}

bool IsAll(const PooledBuffer& buffer, char value) {
  const absl::string_view bytes(buffer.data(), buffer.capacity());
  return std::all_of(bytes.begin(), bytes.end(), [value](char byte) { return byte == value; });
}

// Padding, and what a kernel has not written, must say nothing of the tenant before.
TEST(BufferPoolTest, ABufferOfAnotherTenantComesEmptyAndOnesOwnAsItWas) {
  constexpr TenantMark kOther = 8;
  CountingMemory memory;
  BufferPool pool(memory, 1 << 20);
  PooledBuffer buffer = pool.Get(5000, kOwner);
  EXPECT_TRUE(IsAll(buffer, 0)) << "the process's memory is nobody's";
  const char* place = buffer.data();
  std::memset(buffer.data(), 0x5A, buffer.capacity());
  buffer = {};
  buffer = pool.Get(5000, kOwner);
  EXPECT_EQ(buffer.data(), place);
  EXPECT_TRUE(IsAll(buffer, 0x5A)) << "nothing is written where nothing changes hands";
  buffer = {};
  buffer = pool.Get(4500, kOther);
  EXPECT_EQ(buffer.data(), place);
  EXPECT_TRUE(IsAll(buffer, 0)) << "also behind what was asked for";
}

TEST(BufferPoolTest, ATenantGetsItsOwnBuffersBackFirst) {
  CountingMemory memory;
  BufferPool pool(memory, 1 << 20);
  PooledBuffer first = pool.Get(5000, kOwner), second = pool.Get(5000, kOwner + 1);
  const char *place_of_first = first.data(), *place_of_second = second.data();
  first = {};
  second = {};
  EXPECT_EQ(pool.Get(5000, kOwner).data(), place_of_first);
  EXPECT_EQ(pool.Get(5000, kOwner + 1).data(), place_of_second);
  EXPECT_EQ(memory.allocations, 2);
}

}  // namespace
}  // namespace attention::server
