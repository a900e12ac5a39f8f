// Owns the bytes of all KV pages, within a fixed capacity.
//
// Memory comes from the backend's allocator in chunks; a chunk is carved into pages of one size,
// and goes back to the common stock when its last page is freed, so sessions of any geometry share
// one capacity. Chunks are kept, not returned to the system: fresh memory costs page faults.
//
// A page that comes from somebody else is filled with zeros before its next owner has it, so that
// no mistake of a kernel can show one tenant what another had.
//
// Thread-safety: all methods.
#pragma once

#include <atomic>
#include <cstddef>
#include <map>
#include <memory>
#include <unordered_map>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "kernels/api/attention_backend.h"
#include "server/base/mutex.h"
#include "server/domain/tenant_mark.h"

namespace attention::server {

class PagePool {
 public:
  // One huge page of x86-64 and a multiple of every smaller one.
  static constexpr std::size_t kDefaultChunkBytes = std::size_t{2} << 20;

  // `memory` must outlive the pool. The capacity is rounded down to whole chunks.
  PagePool(MemoryAllocator& memory, std::size_t capacity_bytes,
           std::size_t chunk_bytes = kDefaultChunkBytes);
  ~PagePool();
  PagePool(const PagePool&) = delete;
  PagePool& operator=(const PagePool&) = delete;

  // Allocates a page, or returns null if none of this size is left. page_bytes is at most
  // chunk_bytes().
  void* Allocate(std::size_t page_bytes, TenantMark owner = kNobody);
  // `generation`: when the page was allocated. Pages of one before the present are gone already.
  void Free(void* page, int generation, TenantMark owner = kNobody);

  // The device has lost its memory: every page is gone, and nothing is given back to the allocator.
  // Whoever holds pages sees it by the generation, which grows.
  void LoseAll();
  int generation() const { return generation_.load(std::memory_order_acquire); }

  // True when pages could be allocated now: how many, by their bytes.
  bool CanAllocate(const std::map<std::size_t, std::size_t>& counts) const;
  bool CanAllocate(std::size_t page_bytes, std::size_t count) const {
    return CanAllocate({{page_bytes, count}});
  }

  // The caches that take their pages here; counted by themselves.
  void AddCache(int amount) { num_caches_.fetch_add(amount, std::memory_order_relaxed); }
  int num_caches() const { return num_caches_.load(std::memory_order_relaxed); }

  std::size_t chunk_bytes() const { return chunk_bytes_; }
  std::size_t capacity_bytes() const { return max_chunks_ * chunk_bytes_; }
  std::size_t used_bytes() const;  // of pages handed out
  // Bytes of chunks that hold no page: what a session of any geometry could get.
  std::size_t free_bytes() const;

 private:
  struct FreePage {
    std::byte* bytes = nullptr;
    TenantMark owner = kNobody;  // who had it last; of kNobody it is all zeros
  };
  struct Chunk {
    std::byte* base = nullptr;
    std::size_t page_bytes = 0;
    std::size_t num_used = 0;
    std::vector<FreePage> free_pages;
  };
  // A chunk without pages.
  struct EmptyChunk {
    std::byte* base = nullptr;
    TenantMark owner = kNobody;  // who had all its pages last
  };

  FreePage Take(std::size_t page_bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  Chunk* ChunkWithRoom(std::size_t page_bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  Chunk& AddChunk(const EmptyChunk& empty) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  EmptyChunk TakeChunkMemory() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  Chunk& ChunkOf(const std::byte* page) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  MemoryAllocator& memory_;
  const std::size_t chunk_bytes_;
  const std::size_t max_chunks_;

  mutable Mutex mutex_;
  // Chunks that hold pages, by address, so that a page finds its chunk.
  std::map<const std::byte*, Chunk> chunks_ ABSL_GUARDED_BY(mutex_);
  // Chunks with a free page, by page size.
  std::unordered_map<std::size_t, std::vector<Chunk*>> with_room_ ABSL_GUARDED_BY(mutex_);
  std::vector<EmptyChunk> empty_chunks_ ABSL_GUARDED_BY(mutex_);
  std::size_t used_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  std::atomic<int> generation_{0};  // written under the lock
  std::atomic<int> num_caches_{0};
};

}  // namespace attention::server
