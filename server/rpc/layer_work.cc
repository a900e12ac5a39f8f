#include "server/rpc/layer_work.h"

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "server/base/error_reason.h"

namespace attention::server {
namespace {

// About what packing a large layer takes.
constexpr absl::Duration kRetryDelay = absl::Seconds(1);

absl::Status TooMany(ErrorReason reason, absl::string_view whose, int count, absl::string_view key,
                     int limit) {
  return ReasonedError(
      absl::StatusCode::kResourceExhausted, reason,
      absl::StrCat(whose, " ", count, " layers being uploaded or converted, expected fewer than ",
                   key, " (", limit, ")"),
      {}, kRetryDelay);
}

}  // namespace

absl::StatusOr<LayerWork::Slot> LayerWork::TakeSlot(const std::string& tenant) {
  MutexLock lock(&mutex_);
  const auto of_tenant = pending_of_.find(tenant);
  const int count = of_tenant == pending_of_.end() ? 0 : of_tenant->second;
  if (count >= limits_.max_pending_per_tenant) {
    return TooMany(ErrorReason::kQuotaExceeded, "the tenant has", count,
                   "max-pending-layers-per-tenant", limits_.max_pending_per_tenant);
  }
  if (num_pending_ >= limits_.max_pending) {
    return TooMany(ErrorReason::kQueueFull, "the server has", num_pending_, "max-pending-layers",
                   limits_.max_pending);
  }
  std::string name = tenant;  // before anything is counted: it may throw
  ++pending_of_[tenant];
  ++num_pending_;
  return Slot(this, std::move(name));
}

void LayerWork::GiveBack(const std::string& tenant) {
  MutexLock lock(&mutex_);
  --num_pending_;
  const auto of_tenant = pending_of_.find(tenant);
  if (--of_tenant->second == 0) pending_of_.erase(of_tenant);
}

absl::Status LayerWork::CheckGoing() const {
  if (!is_stopping_.load(std::memory_order_relaxed)) return absl::OkStatus();
  return ReasonedError(absl::StatusCode::kUnavailable, ErrorReason::kDraining,
                       "the server is shutting down");
}

void LayerWork::Stop() {
  is_stopping_.store(true);
  thread_.AwaitIdle();
}

}  // namespace attention::server
