#include "server/memory/buffer_pool.h"

#include <algorithm>
#include <bit>
#include <new>

namespace attention::server {
namespace {

// Smaller ones would save nothing: a page is what the system hands out.
constexpr std::size_t kMinCapacity = 4096;

// Idle buffers of one size among which a tenant's own is looked for.
constexpr std::size_t kMostSeen = 8;

std::size_t CapacityFor(std::size_t bytes) {
  if (bytes <= kMinCapacity) return kMinCapacity;
  if (bytes > (~std::size_t{0} >> 2)) throw std::bad_alloc();
  const std::size_t step = std::bit_floor(bytes) / 4;
  return (bytes + step - 1) / step * step;
}

}  // namespace

PooledBuffer::~PooledBuffer() {
  if (data_ != nullptr) pool_->Return(*this);
}

BufferPool::~BufferPool() {
  MutexLock lock(&mutex_);
  all_returned_.Await(&mutex_, [this] { return used_bytes_ == 0; });
  for (const auto& [capacity, buffers] : idle_) {
    for (const IdleBuffer& buffer : buffers) memory_.Free(buffer.data, capacity);
  }
}

BufferPool::IdleBuffer BufferPool::TakeIdle(std::size_t capacity, TenantMark owner) {
  std::vector<IdleBuffer>& buffers = idle_[capacity];  // may throw, before anything is counted
  used_bytes_ += capacity;
  if (buffers.empty()) return {};
  // Those that returned last are in the processor's cache; more are not worth a look.
  const std::size_t num_seen = std::min(buffers.size(), kMostSeen);
  const auto own =
      std::find_if(buffers.rbegin(), buffers.rbegin() + static_cast<std::ptrdiff_t>(num_seen),
                   [owner](const IdleBuffer& buffer) { return buffer.owner == owner; });
  if (own != buffers.rbegin() + static_cast<std::ptrdiff_t>(num_seen)) {
    std::swap(*own, buffers.back());
  }
  const IdleBuffer taken = buffers.back();
  buffers.pop_back();
  idle_bytes_ -= capacity;
  return taken;
}

PooledBuffer BufferPool::Get(std::size_t bytes, TenantMark owner) {
  const std::size_t capacity = CapacityFor(bytes);
  IdleBuffer buffer;
  {
    MutexLock lock(&mutex_);
    buffer = TakeIdle(capacity, owner);
  }
  if (buffer.data == nullptr) buffer.data = static_cast<char*>(memory_.Allocate(capacity));
  if (buffer.data == nullptr) {
    MutexLock lock(&mutex_);
    used_bytes_ -= capacity;
    throw std::bad_alloc();
  }
  if (buffer.owner != owner || owner == kNobody) memory_.Zero(buffer.data, capacity);
  return {this, buffer.data, capacity, owner};
}

void BufferPool::Return(const PooledBuffer& buffer) {
  const std::size_t capacity = buffer.capacity_;
  MutexLock lock(&mutex_);
  used_bytes_ -= capacity;
  if (idle_bytes_ + capacity <= max_idle_bytes_ && Keep(buffer)) {
    idle_bytes_ += capacity;
  } else {
    memory_.Free(buffer.data_, capacity);
  }
  // Under the lock: the pool may be gone as soon as it is released.
  if (used_bytes_ == 0) all_returned_.NotifyAll();
}

// False when there is no memory to note it. Buffers return in destructors, which may not throw.
bool BufferPool::Keep(const PooledBuffer& buffer) noexcept {
  try {
    idle_[buffer.capacity_].push_back({buffer.data_, buffer.owner_});
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
