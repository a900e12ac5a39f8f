// Memory that this process and a server of its host have both mapped, and the slots in which it is
// lent out.
//
// A slot belongs to whoever holds it: a call until it is answered, a result or a SharedTensor until
// it is destroyed. Its bytes are lent again when the last holder lets go, unless it was abandoned:
// a call that ended without the server's word (cancelled, timed out, connection lost) may still be
// running there, reading its inputs into a session's cache or writing its output. Nothing tells the
// client when that ends, so such bytes are not used again as long as the region lives; a region
// that has some is replaced once it is full (RegionPool), and unmapped here when its last slot
// goes.
//
// The server that made the memory frees it when the lease ends, and who still reads it finds zeros.
// So a region holds its lease: results and tensors there keep it beyond the client.
//
// Thread-safety: all methods.
#pragma once

#include <atomic>
#include <cstddef>
#include <map>
#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "client/internal/shared_memory/extent_allocator.h"

namespace attention::client::internal {

class SharedSlot;

class SharedRegion : public std::enable_shared_from_this<SharedRegion> {
 public:
  struct Lease {
    std::size_t target = 0;                            // the target whose server made it
    std::string id;                                    // the server's name for it
    std::shared_ptr<const void> connection = nullptr;  // ends the lease when it is closed
  };
  // Maps memory of so many bytes, and takes the descriptor. RESOURCE_EXHAUSTED when the system
  // does not map it, FAILED_PRECONDITION when it may shrink, which would end this process.
  // `total_bytes`, if any, counts it as long as it is mapped.
  static absl::StatusOr<std::shared_ptr<SharedRegion>> Map(
      int fd, std::size_t bytes, Lease lease,
      std::shared_ptr<std::atomic<std::size_t>> total_bytes = nullptr);
  ~SharedRegion();
  SharedRegion(const SharedRegion&) = delete;
  SharedRegion& operator=(const SharedRegion&) = delete;

  std::size_t target() const { return lease_.target; }
  const std::string& id() const { return lease_.id; }
  const Lease& lease() const { return lease_; }
  std::size_t size() const { return size_; }

  // A slot of so many bytes, on a 64-byte boundary; null when there is no room.
  std::shared_ptr<SharedSlot> Allocate(std::size_t bytes);
  // The slot in which all these bytes lie; null when there is none.
  std::shared_ptr<SharedSlot> Find(const void* data, std::size_t bytes) const;

  // True if new requests may name it: its server still knows it, and it is not to be replaced.
  bool is_usable() const { return is_usable_.load(std::memory_order_acquire); }
  void SetUnusable() { is_usable_.store(false, std::memory_order_release); }

  bool has_abandoned_slots() const { return has_abandoned_.load(std::memory_order_relaxed); }
  // Lent and abandoned.
  std::size_t used_bytes() const;
  // True if nobody holds a slot.
  bool is_idle() const;

 private:
  friend class SharedSlot;

  SharedRegion(char* data, std::size_t size, Lease lease,
               std::shared_ptr<std::atomic<std::size_t>> total_bytes);

  void Return(std::size_t offset, std::size_t bytes, bool is_abandoned);

  char* const data_;
  const std::size_t size_;
  const Lease lease_;
  const std::shared_ptr<std::atomic<std::size_t>> total_bytes_;
  std::atomic<bool> is_usable_ = true;
  std::atomic<bool> has_abandoned_ = false;
  mutable absl::Mutex mutex_;
  ExtentAllocator extents_ ABSL_GUARDED_BY(mutex_);
  std::map<std::size_t, std::weak_ptr<SharedSlot>> slots_ ABSL_GUARDED_BY(mutex_);  // by offset
};

// Bytes of a region that are lent; keeps the region mapped.
class SharedSlot {
 public:
  ~SharedSlot() { region_->Return(offset_, size_, is_abandoned_.load()); }
  SharedSlot(const SharedSlot&) = delete;
  SharedSlot& operator=(const SharedSlot&) = delete;

  char* data() const { return region_->data_ + offset_; }
  std::size_t size() const { return size_; }
  std::size_t offset() const { return offset_; }
  const std::shared_ptr<SharedRegion>& region() const { return region_; }

  // The server may be using the bytes for an unknown time: they are never lent again.
  void Abandon() {
    is_abandoned_.store(true);
    region_->has_abandoned_.store(true);
  }

 private:
  friend class SharedRegion;
  SharedSlot(std::shared_ptr<SharedRegion> region, std::size_t offset, std::size_t size)
      : region_(std::move(region)), offset_(offset), size_(size) {}

  const std::shared_ptr<SharedRegion> region_;
  const std::size_t offset_;
  const std::size_t size_;
  std::atomic<bool> is_abandoned_ = false;
};

}  // namespace attention::client::internal
