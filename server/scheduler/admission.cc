#include "server/scheduler/admission.h"

#include <algorithm>
#include <optional>

#include "absl/strings/str_cat.h"
#include "server/base/error_reason.h"
#include "server/domain/tenant_limits.h"
#include "server/domain/tenant_share.h"

namespace attention::server {
namespace {

absl::Status QueueFull(const QueueView& view, absl::string_view message) {
  // The work that has to go before there is room: the tenant's own part at the most.
  const absl::Duration in_the_way = std::min(view.all.work, view.tenant.work / view.tenant_share);
  return ReasonedError(absl::StatusCode::kResourceExhausted, ErrorReason::kQueueFull, message, {},
                       RetryDelay(in_the_way, view.work_rate));
}

}  // namespace

absl::Duration RetryDelay(absl::Duration work, double work_rate) {
  constexpr absl::Duration kUnknownRate = absl::Milliseconds(100);
  if (work_rate <= 0) return kUnknownRate;
  return std::clamp(work / work_rate, absl::Milliseconds(1), absl::Seconds(10));
}

absl::Status CheckTenantBytes(const std::string& tenant, std::int64_t held, std::int64_t bytes,
                              std::int64_t bound, absl::Duration retry_delay) {
  if (bytes <= bound - held) return absl::OkStatus();
  const auto delay = bytes <= bound ? std::optional(retry_delay) : std::nullopt;
  return LimitReached(TenantLimit::kQueuedBytes, tenant, held, bytes, bound, delay);
}

absl::Duration ExpectedWait(const QueueView& view) {
  if (view.work_rate <= 0) return absl::ZeroDuration();
  return std::min(view.all.work, view.tenant.work / view.tenant_share) / view.work_rate;
}

absl::Status CheckAdmission(const QueueView& view, const QueueLimits& limits, std::int64_t bytes,
                            absl::Duration until_deadline) {
  if (bytes > limits.max_bytes) {
    return absl::InvalidArgumentError(absl::StrCat("the request takes ", bytes,
                                                   " bytes with its results, expected at most ",
                                                   limits.max_bytes, " (max-queued-bytes)"));
  }
  // Only the operator is told of others' load (/metrics).
  if (!HasRoom(view.all.requests, view.tenant.requests, 1, limits.max_requests)) {
    return QueueFull(
        view, absl::StrCat("the queue of ", limits.max_requests,
                           " requests is full; the tenant's in it are ", view.tenant.requests));
  }
  if (!HasRoom(view.all.bytes, view.tenant.bytes, bytes, limits.max_bytes)) {
    return QueueFull(view, absl::StrCat("the queue of ", limits.max_bytes,
                                        " bytes has no room for the request's ", bytes,
                                        "; the tenant's in it are ", view.tenant.bytes));
  }
  const absl::Duration wait = ExpectedWait(view);
  if (wait > until_deadline) {
    return QueueFull(
        view, absl::StrCat("the request would wait ", absl::FormatDuration(wait),
                           ", beyond its deadline in ", absl::FormatDuration(until_deadline)));
  }
  return absl::OkStatus();
}

}  // namespace attention::server
