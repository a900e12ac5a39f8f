#include "client/internal/shared_memory/extent_allocator.h"

#include <algorithm>
#include <iterator>

namespace attention::client::internal {
namespace {

std::size_t ExtentBytes(std::size_t bytes) {
  return ExtentAllocator::RoundUp(std::max(bytes, std::size_t{1}));
}

}  // namespace

ExtentAllocator::ExtentAllocator(std::size_t size) {
  Insert(0, size / kGranularity * kGranularity);
}

std::optional<std::size_t> ExtentAllocator::Allocate(std::size_t bytes) {
  const std::size_t size = ExtentBytes(bytes);
  if (size < bytes) return std::nullopt;  // so large that it overflowed
  const auto found = free_sizes_.lower_bound({size, 0});
  if (found == free_sizes_.end()) return std::nullopt;
  const auto [found_size, offset] = *found;
  Erase(free_.find(offset));
  Insert(offset + size, found_size - size);
  used_bytes_ += size;
  return offset;
}

void ExtentAllocator::Free(std::size_t offset, std::size_t bytes) {
  std::size_t size = ExtentBytes(bytes);
  used_bytes_ -= size;
  const auto next = free_.lower_bound(offset);
  if (next != free_.begin()) {
    const auto previous = std::prev(next);
    if (previous->first + previous->second == offset) {
      offset = previous->first;
      size += previous->second;
      Erase(previous);
    }
  }
  if (next != free_.end() && next->first == offset + size) {
    size += next->second;
    Erase(next);
  }
  Insert(offset, size);
}

void ExtentAllocator::Insert(std::size_t offset, std::size_t size) {
  if (size == 0) return;
  free_.emplace(offset, size);
  free_sizes_.emplace(size, offset);
}

void ExtentAllocator::Erase(std::map<std::size_t, std::size_t>::iterator extent) {
  free_sizes_.erase({extent->second, extent->first});
  free_.erase(extent);
}

}  // namespace attention::client::internal
