#include "kernels/cpu/huge_page_memory.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>

#include "kernels/base/divide.h"

namespace attention::cpu {
namespace {

constexpr std::size_t kSmallAlign = 64;

bool IsMapped(std::size_t bytes) { return bytes >= kHugePageBytes; }

}  // namespace

void* HugePageAllocator::Allocate(std::size_t bytes) {
  if (!IsMapped(bytes)) {
    return std::aligned_alloc(kSmallAlign, RoundUp(bytes == 0 ? 1 : bytes, kSmallAlign));
  }
  if (bytes > SIZE_MAX / 2) return nullptr;
  const std::size_t mapped = RoundUp(bytes, kHugePageBytes);
  // One huge page more than needed, then the ends are given back, so that the start is aligned.
  void* raw = mmap(nullptr, mapped + kHugePageBytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (raw == MAP_FAILED) return nullptr;
  const auto start = reinterpret_cast<std::uintptr_t>(raw);
  const std::uintptr_t aligned = RoundUp<std::uintptr_t>(start, kHugePageBytes);
  if (aligned > start) munmap(raw, aligned - start);
  const std::size_t tail = start + kHugePageBytes - aligned;
  if (tail > 0) munmap(reinterpret_cast<void*>(aligned + mapped), tail);
  void* memory = reinterpret_cast<void*>(aligned);
  // Best effort: without huge pages everything works, only slower.
  (void)madvise(memory, mapped, MADV_HUGEPAGE);
  return memory;
}

void HugePageAllocator::Free(void* memory, std::size_t bytes) {
  if (memory == nullptr) return;
  if (IsMapped(bytes)) {
    munmap(memory, RoundUp(bytes, kHugePageBytes));
  } else {
    std::free(memory);
  }
}

bool HugePageBuffer::Reserve(std::size_t bytes) {
  if (bytes <= bytes_) return true;
  HugePageAllocator allocator;
  allocator.Free(data_, bytes_);
  data_ = allocator.Allocate(bytes);
  bytes_ = data_ == nullptr ? 0 : bytes;
  return data_ != nullptr;
}

}  // namespace attention::cpu
