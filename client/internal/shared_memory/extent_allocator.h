// Where in a region there is room: extents by size, the best fit first, neighbours joined when they
// are given back. A program that sends the same requests again and again gets the same places
// again, which are in the caches and mapped; unlike with classes of sizes nothing is lost to
// rounding up, of which a region, being small, has little to lose. Knows no memory.
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
  static constexpr size_t kGranularity = 64;

  // The bytes rounded up to a multiple of it.
  static size_t RoundUp(size_t bytes) {
    return (bytes + kGranularity - 1) / kGranularity * kGranularity;
  }

  explicit ExtentAllocator(size_t size);

  // The offset of an extent of at least so many bytes; nullopt when there is no room. An extent of
  // no bytes takes a granule, so that no two have the same offset.
  std::optional<size_t> Allocate(size_t bytes);
  // `offset` and `bytes` as they were allocated.
  void Free(size_t offset, size_t bytes);

  size_t used_bytes() const { return used_bytes_; }

 private:
  void Insert(size_t offset, size_t size);
  void Erase(std::map<size_t, size_t>::iterator extent);

  std::map<size_t, size_t> free_;                   // size by offset
  std::set<std::pair<size_t, size_t>> free_sizes_;  // size and offset
  size_t used_bytes_ = 0;
};

}  // namespace attention::client::internal
