#include "server/cache/page_pool.h"

#include <algorithm>
#include <utility>

#include "kernels/base/check.h"
#include "kernels/base/divide.h"

namespace attention::server {
namespace {

// Grows as push_back does, ahead of it.
template <typename T>
void MakeRoom(std::vector<T>& entries, std::size_t count) {
  if (entries.capacity() < count) entries.reserve(std::max(count, 2 * entries.capacity()));
}

}  // namespace

PagePool::PagePool(MemoryAllocator& memory, std::size_t capacity_bytes, std::size_t chunk_bytes)
    : memory_(memory), chunk_bytes_(chunk_bytes), max_chunks_(capacity_bytes / chunk_bytes) {}

PagePool::~PagePool() {
  MutexLock lock(&mutex_);
  ATTENTION_CHECK(chunks_.empty());  // every KvCache must be gone before its pool
  for (const EmptyChunk& chunk : empty_chunks_) memory_.Free(chunk.base, chunk_bytes_);
}

void* PagePool::Allocate(std::size_t page_bytes, TenantMark owner) {
  ATTENTION_CHECK(page_bytes > 0 && page_bytes <= chunk_bytes_);
  FreePage page;
  {
    MutexLock lock(&mutex_);
    page = Take(page_bytes);
  }
  const bool is_clean = page.owner == owner || page.owner == kNobody;
  if (page.bytes != nullptr && !is_clean) memory_.Zero(page.bytes, page_bytes);
  return page.bytes;
}

PagePool::FreePage PagePool::Take(std::size_t page_bytes) {
  Chunk* chunk = ChunkWithRoom(page_bytes);
  if (chunk == nullptr) return {};
  const FreePage page = chunk->free_pages.back();
  chunk->free_pages.pop_back();
  ++chunk->num_used;
  used_bytes_ += page_bytes;
  if (chunk->free_pages.empty()) {
    std::vector<Chunk*>& with_room = with_room_[page_bytes];
    with_room.erase(std::find(with_room.begin(), with_room.end(), chunk));
  }
  return page;
}

void PagePool::LoseAll() {
  MutexLock lock(&mutex_);
  generation_.fetch_add(1, std::memory_order_release);
  chunks_.clear();
  with_room_.clear();
  empty_chunks_.clear();
  used_bytes_ = 0;
}

void PagePool::Free(void* page, int generation, TenantMark owner) {
  auto* bytes = static_cast<std::byte*>(page);
  MutexLock lock(&mutex_);
  if (generation != generation_.load(std::memory_order_relaxed)) return;
  Chunk& chunk = ChunkOf(bytes);
  std::vector<Chunk*>& with_room = with_room_[chunk.page_bytes];
  if (chunk.free_pages.empty()) with_room.push_back(&chunk);
  chunk.free_pages.push_back({bytes, owner});
  --chunk.num_used;
  used_bytes_ -= chunk.page_bytes;
  if (chunk.num_used > 0) return;
  with_room.erase(std::find(with_room.begin(), with_room.end(), &chunk));
  const bool has_one_owner =
      std::all_of(chunk.free_pages.begin(), chunk.free_pages.end(),
                  [owner](const FreePage& free) { return free.owner == owner; });
  empty_chunks_.push_back({chunk.base, has_one_owner ? owner : kSeveral});
  chunks_.erase(chunk.base);
}

bool PagePool::CanAllocate(const std::map<std::size_t, std::size_t>& counts) const {
  MutexLock lock(&mutex_);
  std::size_t num_chunks = 0;
  for (const auto& [page_bytes, count] : counts) {
    std::size_t available = 0;
    const auto with_room = with_room_.find(page_bytes);
    if (with_room != with_room_.end()) {
      for (const Chunk* chunk : with_room->second) available += chunk->free_pages.size();
    }
    const std::size_t missing = count > available ? count - available : 0;
    num_chunks += CeilDiv(missing, chunk_bytes_ / page_bytes);
  }
  return num_chunks <= max_chunks_ - chunks_.size();
}

std::size_t PagePool::used_bytes() const {
  MutexLock lock(&mutex_);
  return used_bytes_;
}

std::size_t PagePool::free_bytes() const {
  MutexLock lock(&mutex_);
  return (max_chunks_ - chunks_.size()) * chunk_bytes_;
}

PagePool::Chunk* PagePool::ChunkWithRoom(std::size_t page_bytes) {
  std::vector<Chunk*>& with_room = with_room_[page_bytes];
  if (!with_room.empty()) return with_room.back();
  // Room for every chunk there may be: pages are freed in destructors, which may not throw.
  MakeRoom(with_room, chunks_.size() + 1);
  MakeRoom(empty_chunks_, chunks_.size() + empty_chunks_.size() + 1);
  const std::size_t num_pages = chunk_bytes_ / page_bytes;
  std::vector<FreePage> free_pages;
  free_pages.reserve(num_pages);
  const EmptyChunk empty = TakeChunkMemory();
  if (empty.base == nullptr) return nullptr;
  // The lowest address is handed out first: pages of one sequence tend to lie in a row.
  for (std::size_t i = num_pages; i > 0; --i) {
    free_pages.push_back({empty.base + (i - 1) * page_bytes, empty.owner});
  }
  Chunk& chunk = AddChunk(empty);
  chunk.page_bytes = page_bytes;
  chunk.free_pages = std::move(free_pages);
  with_room.push_back(&chunk);
  return &chunk;
}

PagePool::Chunk& PagePool::AddChunk(const EmptyChunk& empty) {
  try {
    Chunk& chunk = chunks_[empty.base];
    chunk.base = empty.base;
    return chunk;
  } catch (...) {
    empty_chunks_.push_back(empty);
    throw;
  }
}

PagePool::EmptyChunk PagePool::TakeChunkMemory() {
  if (!empty_chunks_.empty()) {
    const EmptyChunk chunk = empty_chunks_.back();
    empty_chunks_.pop_back();
    return chunk;
  }
  if (chunks_.size() >= max_chunks_) return {};
  // As a whole: a device takes as long for a page as for a chunk.
  auto* chunk = static_cast<std::byte*>(memory_.Allocate(chunk_bytes_));
  if (chunk != nullptr) memory_.Zero(chunk, chunk_bytes_);
  return {chunk, kNobody};
}

PagePool::Chunk& PagePool::ChunkOf(const std::byte* page) {
  auto chunk = chunks_.upper_bound(page);
  ATTENTION_CHECK(chunk != chunks_.begin());
  --chunk;
  ATTENTION_CHECK(page < chunk->first + chunk_bytes_);
  return chunk->second;
}

}  // namespace attention::server
