// Buffers for the tensors of requests and responses: warm memory that is handed out again.
//
// Fresh memory costs a page fault for every 4 KiB, which is more than copying into it: a raw echo
// of 16 MiB takes half the time when its buffers are reused. Buffers come in sizes of four steps
// between powers of two, so at most a quarter is wasted.
//
// A buffer that comes from another tenant, or from nobody, is filled with zeros first: whatever is
// not written before it is sent or read says nothing of somebody else. A tenant gets its own back
// where there is one, as it is.
//
// Thread-safety: all methods. Buffers may be returned on any thread.
#pragma once

#include <cstddef>
#include <memory>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "kernels/api/attention_backend.h"
#include "server/base/mutex.h"
#include "server/domain/tenant_mark.h"

namespace attention::server {

class BufferPool;

// Goes back to its pool when destroyed. Contents are unspecified at first, but of nobody else.
class PooledBuffer {
 public:
  PooledBuffer() = default;
  PooledBuffer(PooledBuffer&& other) noexcept
      : pool_(std::exchange(other.pool_, nullptr)),
        data_(std::exchange(other.data_, nullptr)),
        capacity_(std::exchange(other.capacity_, 0)),
        owner_(other.owner_) {}
  PooledBuffer& operator=(PooledBuffer&& other) noexcept {
    std::swap(pool_, other.pool_);
    std::swap(data_, other.data_);
    std::swap(capacity_, other.capacity_);
    std::swap(owner_, other.owner_);
    return *this;
  }
  ~PooledBuffer();

  // 64-byte aligned; null when empty.
  char* data() const { return data_; }
  std::size_t capacity() const { return capacity_; }

 private:
  friend class BufferPool;
  PooledBuffer(BufferPool* pool, char* data, std::size_t capacity, TenantMark owner)
      : pool_(pool), data_(data), capacity_(capacity), owner_(owner) {}

  BufferPool* pool_ = nullptr;
  char* data_ = nullptr;
  std::size_t capacity_ = 0;
  TenantMark owner_ = kNobody;
};

class BufferPool {
 public:
  // Keeps at most `max_idle_bytes` of buffers that nobody uses. `memory` must outlive the pool.
  BufferPool(MemoryAllocator& memory, std::size_t max_idle_bytes)
      : memory_(memory), max_idle_bytes_(max_idle_bytes) {}
  // Waits until every buffer is back: gRPC may hold some until their bytes have left.
  ~BufferPool();
  BufferPool(const BufferPool&) = delete;
  BufferPool& operator=(const BufferPool&) = delete;

  // At least `bytes` large. Throws std::bad_alloc when memory is out.
  PooledBuffer Get(std::size_t bytes, TenantMark owner);

  std::size_t idle_bytes() const;
  // The bytes of buffers that are handed out.
  std::size_t used_bytes() const;

 private:
  friend class PooledBuffer;
  struct IdleBuffer {
    char* data = nullptr;
    TenantMark owner = kNobody;  // who had it last
  };

  // One that is idle, the owner's own if there is one; null when there is none.
  IdleBuffer TakeIdle(std::size_t capacity, TenantMark owner) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Return(const PooledBuffer& buffer);
  bool Keep(const PooledBuffer& buffer) noexcept ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  MemoryAllocator& memory_;
  const std::size_t max_idle_bytes_;

  mutable Mutex mutex_;
  CondVar all_returned_;
  // By capacity, that returned last at the end.
  std::unordered_map<std::size_t, std::vector<IdleBuffer>> idle_ ABSL_GUARDED_BY(mutex_);
  std::size_t idle_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  std::size_t used_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace attention::server
