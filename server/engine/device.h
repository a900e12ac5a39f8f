// One device of the worker pool: its backend, the memory of its KV pages, the worker that computes
// on it, and how it comes back after a failure.
//
// Thread-safety: as its parts.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <optional>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/base/clock.h"
#include "server/base/metrics.h"
#include "server/cache/cache_list.h"
#include "server/cache/page_pool.h"
#include "server/engine/recovering_backend.h"
#include "server/engine/spiller.h"
#include "server/engine/worker.h"

namespace attention::server {

class Device {
 public:
  struct Options {
    std::size_t kv_capacity_bytes = 0;
    // The bytes of the host's memory for pages of idle sessions, for when no others are left; 0:
    // none.
    std::size_t kv_spill_bytes = 0;
    // The time that a session must have been idle before its pages go there.
    absl::Duration kv_spill_idle = absl::Seconds(1);
    // The CPU that the worker's thread is kept on.
    std::optional<int> cpu;
    // Told, on the worker's thread, what failed and how setting the device up again went.
    std::function<void(const absl::Status& failure, const absl::Status& recovery)> on_failure;
  };

  // `clock` and `metrics` must outlive the device.
  Device(std::unique_ptr<RecoveringBackend> backend, Options options, const Clock& clock,
         ServerMetrics& metrics);
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  RecoveringBackend& backend() { return *backend_; }
  PagePool& pages() { return pages_; }
  PagePool& host_pages() { return host_pages_; }
  CacheList& caches() { return caches_; }
  bool has_spill() const { return options_.kv_spill_bytes > 0; }
  Worker& worker() { return worker_; }

 private:
  // After INTERNAL, and while the device is unusable, once a second: sets it up again. Sessions go
  // on where memory has outlived the backend; else their caches are lost, and say so when used.
  void OnFailure(const absl::Status& failure);

  const std::unique_ptr<RecoveringBackend> backend_;
  const Options options_;
  const Clock& clock_;
  ServerMetrics& metrics_;
  PagePool pages_;
  PagePool host_pages_;
  CacheList caches_;
  Spiller spiller_;
  Worker worker_;
  absl::Time last_recovery_ = absl::InfinitePast();
};

}  // namespace attention::server
