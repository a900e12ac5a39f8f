// Memory that this process and a server of its host have both mapped, and the slots in which it is
// lent out.
//
// A slot belongs to whoever holds it: a call until it is answered, a result or a SharedTensor until
// it is destroyed. Its bytes are lent again when the last holder lets go, unless it was abandoned:
// a call that ended without the server's word (cancelled, timed out, connection lost) may still be
// running there, reading its inputs into a session's cache or writing its output. Nothing tells the
// client when that ends, so such bytes are not used again as long as the region lives; a region
// that has some is replaced once it is full (RegionPool), and unmapped here when its last slot
// goes. The server keeps its own mapping for as long as it computes.
//
// Thread-safety: all methods.
#ifndef ATTENTION_CLIENT_INTERNAL_SHARED_REGION_H_
#define ATTENTION_CLIENT_INTERNAL_SHARED_REGION_H_

#include <atomic>
#include <cstddef>
#include <map>
#include <memory>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "client/internal/extent_allocator.h"

namespace attention::client::internal {

class SharedSlot;

class SharedRegion : public std::enable_shared_from_this<SharedRegion> {
 public:
  // Memory of so many bytes, filled with zeros, all of it resident. RESOURCE_EXHAUSTED when the
  // system gives none. `total_bytes`, if any, counts it as long as it is mapped.
  static absl::StatusOr<std::shared_ptr<SharedRegion>> Create(
      size_t bytes, std::shared_ptr<std::atomic<size_t>> total_bytes = nullptr);
  ~SharedRegion();
  SharedRegion(const SharedRegion&) = delete;
  SharedRegion& operator=(const SharedRegion&) = delete;

  // What a server maps: sealed so that it cannot shrink under its readers.
  int fd() const { return fd_; }
  size_t size() const { return size_; }

  // A slot of so many bytes, on a 64-byte boundary; null when there is no room.
  std::shared_ptr<SharedSlot> Allocate(size_t bytes);
  // The slot in which all these bytes lie; null when there is none.
  std::shared_ptr<SharedSlot> Find(const void* data, size_t bytes) const;

  // Whether a server knows it, so that slots are of use.
  bool is_offered() const { return is_offered_.load(std::memory_order_acquire); }
  void set_is_offered(bool value) { is_offered_.store(value, std::memory_order_release); }

  bool has_abandoned_slots() const { return has_abandoned_.load(std::memory_order_relaxed); }
  // Lent and abandoned.
  size_t used_bytes() const;

 private:
  friend class SharedSlot;

  SharedRegion(int fd, char* data, size_t size, std::shared_ptr<std::atomic<size_t>> total_bytes);

  void Return(size_t offset, size_t bytes, bool is_abandoned);

  const int fd_;
  char* const data_;
  const size_t size_;
  const std::shared_ptr<std::atomic<size_t>> total_bytes_;
  std::atomic<bool> is_offered_ = false;
  std::atomic<bool> has_abandoned_ = false;
  mutable absl::Mutex mutex_;
  ExtentAllocator extents_ ABSL_GUARDED_BY(mutex_);
  std::map<size_t, std::weak_ptr<SharedSlot>> slots_ ABSL_GUARDED_BY(mutex_);  // by offset
};

// Bytes of a region that are lent; keeps the region mapped.
class SharedSlot {
 public:
  ~SharedSlot() { region_->Return(offset_, size_, is_abandoned_.load()); }
  SharedSlot(const SharedSlot&) = delete;
  SharedSlot& operator=(const SharedSlot&) = delete;

  char* data() const { return region_->data_ + offset_; }
  size_t size() const { return size_; }
  size_t offset() const { return offset_; }
  const std::shared_ptr<SharedRegion>& region() const { return region_; }

  // The server may be using the bytes for an unknown time: they are never lent again.
  void Abandon() {
    is_abandoned_.store(true);
    region_->has_abandoned_.store(true);
  }

 private:
  friend class SharedRegion;
  SharedSlot(std::shared_ptr<SharedRegion> region, size_t offset, size_t size)
      : region_(std::move(region)), offset_(offset), size_(size) {}

  const std::shared_ptr<SharedRegion> region_;
  const size_t offset_;
  const size_t size_;
  std::atomic<bool> is_abandoned_ = false;
};

}  // namespace attention::client::internal

#endif  // ATTENTION_CLIENT_INTERNAL_SHARED_REGION_H_
