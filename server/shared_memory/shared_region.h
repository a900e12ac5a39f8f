// Memory that the server has made for a client, which has it mapped as well: tensors lie in it and
// results are written to it without a copy.
//
// The memory is the client's to change at any time, while a kernel reads it too. That is safe for
// everybody else: nothing in it is ever an address, a length or a count (those travel by gRPC and
// are checked), and kernels do the same loads and stores whatever the values are. A client that
// scribbles while its request runs spoils that request's result. The file is sealed: it cannot
// shrink while it is mapped, which would kill the server with SIGBUS, nor grow beyond what counts.
//
// Thread-safety: one thread at a time until it is populated and its descriptor taken; then
// immutable, but for KeepPages.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace attention::server {

class SharedRegion {
 public:
  static constexpr std::int64_t kMinBytes = 4096;

  // A file of so many bytes, rounded up to whole pages, mapped, of which no page is there yet.
  // RESOURCE_EXHAUSTED when the system gives none.
  static absl::StatusOr<std::unique_ptr<SharedRegion>> Create(std::int64_t bytes);
  // Unmaps it. Its pages are freed, even where the client still has the file.
  ~SharedRegion();
  SharedRegion(const SharedRegion&) = delete;
  SharedRegion& operator=(const SharedRegion&) = delete;

  // Takes the pages of the next so many bytes. RESOURCE_EXHAUSTED when there is no memory for them.
  absl::Status Populate(std::int64_t bytes);
  bool is_populated() const { return populated_ == size_; }
  // The file's descriptor, for the client: the caller's from now on. Once.
  int TakeFd();

  // Frees the last so many bytes of pages; false once there are no more.
  bool Depopulate(std::int64_t bytes);
  // Leaves the pages to whoever else has the file mapped when this goes.
  void KeepPages() const { keeps_pages_.store(true, std::memory_order_relaxed); }
  bool keeps_pages() const { return keeps_pages_.load(std::memory_order_relaxed); }

  char* data() const { return data_; }
  std::int64_t size() const { return size_; }

  // True when [offset, offset + bytes) lies within.
  bool Contains(std::int64_t offset, std::int64_t bytes) const {
    return offset >= 0 && bytes >= 0 && bytes <= size_ && offset <= size_ - bytes;
  }

 private:
  SharedRegion(int fd, char* data, std::int64_t size) : fd_(fd), data_(data), size_(size) {}

  int fd_;  // negative once it is taken
  char* const data_;
  const std::int64_t size_;
  std::int64_t populated_ = 0;
  mutable std::atomic<bool> keeps_pages_{false};
};

}  // namespace attention::server
