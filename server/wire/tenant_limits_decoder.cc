#include "server/wire/tenant_limits_decoder.h"

#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "server/base/client_text.h"
#include "server/base/status_macros.h"

namespace attention::server {
namespace {

absl::Status DecodeCount(absl::string_view field, bool is_set, std::int64_t value,
                         std::int64_t* count) {
  if (!is_set) return absl::OkStatus();
  if (value < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("limits.", field, " is ", value, ", expected at least 0"));
  }
  *count = value;
  return absl::OkStatus();
}

// Not true of NaN either.
absl::Status CheckNumber(absl::string_view field, double value, double least, double most) {
  if (value >= least && value <= most) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("limits.", field, " is ", value, ", expected ", least, " to ", most));
}

void EncodeCount(std::int64_t count, v1::TenantLimits* wire,
                 void (v1::TenantLimits::*set)(std::int64_t)) {
  if (count != TenantLimits::kNone) (wire->*set)(count);
}

}  // namespace

absl::StatusOr<TenantLimits> DecodeTenantLimits(const v1::TenantLimits& wire,
                                                const TenantLimits& present) {
  TenantLimits limits = present;
  ATTENTION_RETURN_IF_ERROR(
      DecodeCount("kv_bytes", wire.has_kv_bytes(), wire.kv_bytes(), &limits.kv_bytes));
  ATTENTION_RETURN_IF_ERROR(
      DecodeCount("layer_bytes", wire.has_layer_bytes(), wire.layer_bytes(), &limits.layer_bytes));
  ATTENTION_RETURN_IF_ERROR(
      DecodeCount("sessions", wire.has_sessions(), wire.sessions(), &limits.sessions));
  ATTENTION_RETURN_IF_ERROR(
      DecodeCount("streams", wire.has_streams(), wire.streams(), &limits.streams));
  ATTENTION_RETURN_IF_ERROR(DecodeCount("queued_bytes", wire.has_queued_bytes(),
                                        wire.queued_bytes(), &limits.queued_bytes));
  if (wire.has_work_rate()) {
    limits.work_rate = wire.work_rate();
    const bool is_none = limits.work_rate == std::numeric_limits<double>::infinity();
    if (!is_none) {
      ATTENTION_RETURN_IF_ERROR(CheckNumber("work_rate", limits.work_rate, TenantLimits::kMinRate,
                                            TenantLimits::kMaxRate));
    }
  }
  if (wire.has_share()) {
    limits.share = wire.share();
    ATTENTION_RETURN_IF_ERROR(
        CheckNumber("share", limits.share, TenantLimits::kMinShare, TenantLimits::kMaxShare));
  }
  if (wire.has_highest_priority()) {
    const std::optional<Priority> priority = ParsePriority(wire.highest_priority());
    if (!priority) {
      return absl::InvalidArgumentError(absl::StrCat("limits.highest_priority is ",
                                                     Quoted(wire.highest_priority()),
                                                     ", expected high, normal or low"));
    }
    limits.highest_priority = *priority;
  }
  return limits;
}

void EncodeTenantLimits(const TenantLimits& limits, v1::TenantLimits* wire) {
  EncodeCount(limits.kv_bytes, wire, &v1::TenantLimits::set_kv_bytes);
  EncodeCount(limits.layer_bytes, wire, &v1::TenantLimits::set_layer_bytes);
  EncodeCount(limits.sessions, wire, &v1::TenantLimits::set_sessions);
  EncodeCount(limits.streams, wire, &v1::TenantLimits::set_streams);
  EncodeCount(limits.queued_bytes, wire, &v1::TenantLimits::set_queued_bytes);
  if (!std::isinf(limits.work_rate)) wire->set_work_rate(limits.work_rate);
  wire->set_share(limits.share);
  wire->set_highest_priority(std::string(PriorityName(limits.highest_priority)));
}

}  // namespace attention::server
