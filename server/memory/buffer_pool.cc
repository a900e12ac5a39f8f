#include "server/memory/buffer_pool.h"

#include <algorithm>
#include <bit>
#include <new>

namespace attention::server {
namespace {

// Smaller ones would save nothing: a page is what the system hands out.
constexpr std::size_t kMinCapacity = 4096;

std::size_t CapacityFor(std::size_t bytes) {
  if (bytes <= kMinCapacity) return kMinCapacity;
  if (bytes > (~std::size_t{0} >> 2)) throw std::bad_alloc();
  const std::size_t step = std::bit_floor(bytes) / 4;
  return (bytes + step - 1) / step * step;
}

}  // namespace

PooledBuffer::~PooledBuffer() {
  if (data_ != nullptr) pool_->Return(data_, capacity_);
}

BufferPool::~BufferPool() {
  MutexLock lock(&mutex_);
  all_returned_.Await(&mutex_, [this] { return used_bytes_ == 0; });
  for (const auto& [capacity, buffers] : idle_) {
    for (char* data : buffers) memory_.Free(data, capacity);
  }
}

PooledBuffer BufferPool::Get(std::size_t bytes) {
  const std::size_t capacity = CapacityFor(bytes);
  {
    MutexLock lock(&mutex_);
    std::vector<char*>& buffers = idle_[capacity];  // may throw, before anything is counted
    used_bytes_ += capacity;
    if (!buffers.empty()) {
      char* data = buffers.back();
      buffers.pop_back();
      idle_bytes_ -= capacity;
      return {this, data, capacity};
    }
  }
  auto* data = static_cast<char*>(memory_.Allocate(capacity));
  if (data != nullptr) return {this, data, capacity};
  MutexLock lock(&mutex_);
  used_bytes_ -= capacity;
  throw std::bad_alloc();
}

void BufferPool::Return(char* data, std::size_t capacity) {
  MutexLock lock(&mutex_);
  used_bytes_ -= capacity;
  if (idle_bytes_ + capacity <= max_idle_bytes_ && Keep(data, capacity)) {
    idle_bytes_ += capacity;
  } else {
    memory_.Free(data, capacity);
  }
  // Under the lock: the pool may be gone as soon as it is released.
  if (used_bytes_ == 0) all_returned_.NotifyAll();
}

// False when there is no memory to note it. Buffers return in destructors, which may not throw.
bool BufferPool::Keep(char* data, std::size_t capacity) noexcept {
  try {
    idle_[capacity].push_back(data);
    return true;
  } catch (const std::bad_alloc&) {
    return false;
  }
}

std::size_t BufferPool::idle_bytes() const {
  MutexLock lock(&mutex_);
  return idle_bytes_;
}

std::size_t BufferPool::used_bytes() const {
  MutexLock lock(&mutex_);
  return used_bytes_;
}

}  // namespace attention::server
