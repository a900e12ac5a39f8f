#include "kernels/cpu/weight_memory.h"

#include <sys/mman.h>

#include <cstdlib>
#include <new>

#include "kernels/base/aligned_buffer.h"
#include "kernels/base/divide.h"

namespace attention::cpu {
namespace {

// Below, the page that a mapping wastes on average and its two system calls weigh more.
constexpr std::size_t kMinMappedBytes = std::size_t{64} << 10;
constexpr std::size_t kHugePageBytes = std::size_t{2} << 20;

}  // namespace

WeightMemory::WeightMemory(std::size_t size) : size_(size) {
  if (size == 0) return;
  if (size < kMinMappedBytes) {
    data_ = static_cast<char*>(std::aligned_alloc(kCacheLineBytes, RoundUp(size, kCacheLineBytes)));
    if (data_ == nullptr) throw std::bad_alloc();
    return;
  }
  void* mapped = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) throw std::bad_alloc();
  // Weights are read from end to end on each pass: large pages spare the look-ups of addresses.
  if (size >= kHugePageBytes) madvise(mapped, size, MADV_HUGEPAGE);
  data_ = static_cast<char*>(mapped);
}

WeightMemory::~WeightMemory() {
  if (data_ == nullptr) return;
  if (size_ < kMinMappedBytes) {
    std::free(data_);
  } else {
    munmap(data_, size_);
  }
}

}  // namespace attention::cpu
