// Hands out extents of a region, the best fit first; neighbours are joined when they are given
// back. A program that repeats its requests gets the same extents again, which are mapped and in
// the caches. Classes of sizes would lose bytes to rounding up, and a region is small. The
// allocator deals in offsets and touches no memory.
//
// Thread-safety: none.
#pragma once

#include <cstddef>
#include <map>
#include <optional>
#include <set>
#include <utility>

namespace attention::client::internal {

class ExtentAllocator {
 public:
  // Offsets and sizes of extents are multiples of it, in bytes.
  static constexpr std::size_t kGranularity = 64;

  // The bytes rounded up to a multiple of it.
  static std::size_t RoundUp(std::size_t bytes) {
    return (bytes + kGranularity - 1) / kGranularity * kGranularity;
  }

  explicit ExtentAllocator(std::size_t size);

  // The offset of an extent of at least so many bytes; nullopt when there is no room. An extent of
  // no bytes takes a granule, so that no two have the same offset.
  std::optional<std::size_t> Allocate(std::size_t bytes);
  // `offset` and `bytes` as they were allocated.
  void Free(std::size_t offset, std::size_t bytes);

  std::size_t used_bytes() const { return used_bytes_; }

 private:
  void Insert(std::size_t offset, std::size_t size);
  void Erase(std::map<std::size_t, std::size_t>::iterator extent);

  std::map<std::size_t, std::size_t> free_;                   // size by offset
  std::set<std::pair<std::size_t, std::size_t>> free_sizes_;  // size and offset
  std::size_t used_bytes_ = 0;
};

}  // namespace attention::client::internal
