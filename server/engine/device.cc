#include "server/engine/device.h"

#include <utility>

namespace attention::server {
namespace {

// Between attempts on a device that does not come back.
constexpr absl::Duration kRetryPeriod = absl::Seconds(1);

}  // namespace

Device::Device(std::unique_ptr<RecoveringBackend> backend, Options options, const Clock& clock,
               ServerMetrics& metrics)
    : backend_(std::move(backend)),
      options_(std::move(options)),
      clock_(clock),
      metrics_(metrics),
      pages_(backend_->memory(), options_.kv_capacity_bytes),
      host_pages_(backend_->host_memory(), options_.kv_spill_bytes),
      spiller_(*backend_, pages_, host_pages_, caches_, options_.kv_spill_idle, clock, metrics),
      worker_(*backend_, clock, metrics,
              {options_.cpu, [this](const absl::Status& failure) { OnFailure(failure); },
               has_spill() ? &spiller_ : nullptr}) {}

void Device::OnFailure(const absl::Status& failure) {
  const bool is_usable = backend_->is_usable();
  // A plan of the backend before the present one.
  if (is_usable && failure.code() != absl::StatusCode::kInternal) return;
  const absl::Time now = clock_.Now();
  if (!is_usable && now - last_recovery_ < kRetryPeriod) return;
  last_recovery_ = now;
  // Nothing may be read of what is about to be lost.
  if (is_usable && !backend_->memory().outlives_backend()) pages_.LoseAll();
  const absl::Status recovery = backend_->Recover();
  metrics_.device_failures.Add();
  if (options_.on_failure) options_.on_failure(failure, recovery);
}

}  // namespace attention::server
