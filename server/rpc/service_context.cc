#include "server/rpc/service_context.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/base/client_text.h"
#include "server/base/contain_exceptions.h"
#include "server/base/error_reason.h"
#include "server/base/status_macros.h"
#include "server/rpc/caller.h"

namespace attention::server {
namespace {

constexpr char kPriorityKey[] = "attention-priority";
constexpr char kRequestIdKey[] = "x-request-id";
// Smaller messages cost less to decode than to ask about first. Their number is bounded by that of
// calls and, on streams, of requests.
constexpr std::size_t kMinCheckedBytes = std::size_t{64} << 10;

absl::StatusOr<std::optional<Priority>> ReadPriority(const grpc::ServerContextBase& context) {
  ATTENTION_ASSIGN_OR_RETURN(const std::optional<std::string> name,
                             ReadMetadata(context, kPriorityKey));
  if (!name) return std::optional<Priority>();
  const std::optional<Priority> priority = ParsePriority(*name);
  if (priority.has_value()) return priority;
  return absl::InvalidArgumentError(absl::StrCat("metadata ", kPriorityKey, " is ", Quoted(*name),
                                                 ", expected high, normal or low"));
}

absl::Status CheckNumCalls(const ServiceContext& services) noexcept {
  const std::int64_t count = services.calls_in_flight.num_open();
  if (count <= services.limits.max_calls) return absl::OkStatus();
  return ContainExceptions([&] {
    return ReasonedError(
        absl::StatusCode::kResourceExhausted, ErrorReason::kQueueFull,
        absl::StrCat("the server has ", count, " open calls, expected at most max-calls (",
                     services.limits.max_calls, ")"),
        {}, absl::Seconds(1));
  });
}

}  // namespace

CallFrame::CallFrame(const ServiceContext& services, const char* rpc, Kind kind,
                     const grpc::ServerContextBase& context, CancelFlag is_cancelled)
    : services_(services),
      rpc_(rpc),
      kind_(kind),
      peer_(context.peer()),
      arrival_(services.clock.Now()),
      deadline_(absl::FromChrono(context.deadline())),
      is_cancelled_(std::move(is_cancelled)) {
  status_ = ReadHeaders(context);
  // Last: what throws before it is not destroyed, which would count it out.
  services_.calls_in_flight.Add(kind_ == Kind::kStream);
  status_.Update(CheckNumCalls(services_));
  if (kind_ == Kind::kStream && status_.ok()) {
    status_ = ContainExceptions([this] { return services_.streams.Take(identity_.tenant, 1); });
    is_counted_stream_ = status_.ok();
  }
}

CallFrame::~CallFrame() {
  if (is_counted_stream_) services_.streams.Give(identity_.tenant, 1);
  services_.calls_in_flight.Remove(kind_ == Kind::kStream);
}

// A call that asks for nothing has normal priority, or the tenant's highest if that is lower.
absl::Status CallFrame::SetPriority(std::optional<Priority> asked) {
  const Priority highest = services_.tenant_limits.Of(identity_.tenant).highest_priority;
  priority_ = asked.value_or(std::max(Priority::kNormal, highest));
  if (priority_ >= highest) return absl::OkStatus();  // the highest is the least
  services_.tenant_limits.CountRefusal(TenantLimit::kHighestPriority, identity_.tenant);
  const std::string bound(PriorityName(highest));
  return ReasonedError(
      absl::StatusCode::kPermissionDenied, ErrorReason::kPriorityNotAllowed,
      absl::StrCat("metadata ", kPriorityKey, " is ", PriorityName(priority_),
                   ", expected at most ", bound, ", the limit highest-priority of tenant ",
                   Quoted(identity_.tenant),
                   ": ask for a lower priority, or the operator for more"),
      {{"limit", std::string(TenantLimitKey(TenantLimit::kHighestPriority))}, {"bound", bound}});
}

absl::Status CallFrame::CheckIsAdmin() const {
  if (identity_.role == Role::kAdmin) return absl::OkStatus();
  return ReasonedError(absl::StatusCode::kPermissionDenied, ErrorReason::kRoleRequired,
                       absl::StrCat(rpc_,
                                    ", or the tenant that it names, is for the role admin; this "
                                    "call has the role use"),
                       {{"role", "admin"}});
}

absl::StatusOr<std::string> CallFrame::TenantNamed(const std::string& field) const {
  if (field.empty() || field == identity_.tenant) return identity_.tenant;
  ATTENTION_RETURN_IF_ERROR(CheckIsAdmin());
  if (IsTenantName(field)) return field;
  return absl::InvalidArgumentError(absl::StrCat("tenant is ", Quoted(field), ", expected 1 to ",
                                                 kMaxTenantBytes, " printable ASCII characters"));
}

absl::Status CallFrame::ReadHeaders(const grpc::ServerContextBase& context) {
  ATTENTION_ASSIGN_OR_RETURN(std::optional<std::string> request_id,
                             ReadMetadata(context, kRequestIdKey));
  request_id_ = std::move(request_id).value_or("");
  absl::StatusOr<Identity> identity =
      IdentifyCaller(services_.authenticator, context, services_.of_connections, arrival_);
  if (absl::IsUnauthenticated(identity.status())) {
    services_.credential_watch.OnRefused(peer_, arrival_);
  }
  ATTENTION_ASSIGN_OR_RETURN(identity_, std::move(identity));
  ATTENTION_ASSIGN_OR_RETURN(const std::optional<Priority> asked, ReadPriority(context));
  return SetPriority(asked);
}

absl::Status CallFrame::CheckRoom(std::size_t bytes) const {
  if (bytes < kMinCheckedBytes) return absl::OkStatus();
  return services_.scheduler.CheckRoom(
      {identity_.tenant, priority_, static_cast<std::int64_t>(bytes), deadline_},
      services_.clock.Now());
}

absl::StatusOr<ResultLedger::Charge> CallFrame::AdmitResults(std::int64_t message_bytes,
                                                             std::int64_t result_bytes) const {
  if (result_bytes < static_cast<std::int64_t>(kMinCheckedBytes)) return nullptr;
  ATTENTION_RETURN_IF_ERROR(services_.scheduler.CheckRoom(
      {identity_.tenant, priority_, message_bytes + result_bytes, deadline_},
      services_.clock.Now()));
  absl::StatusOr<ResultLedger::Charge> charge =
      services_.results.Take(identity_.tenant, result_bytes);
  if (!charge.ok()) services_.metrics.rejected_queue_full.Add();
  return charge;
}

std::unique_ptr<AttentionRequest> CallFrame::MakeRequest() const {
  auto request = std::make_unique<AttentionRequest>();
  request->tenant = identity_.tenant;
  request->priority = priority_;
  request->arrival = services_.clock.Now();
  request->deadline = deadline_;
  request->is_cancelled = is_cancelled_;
  return request;
}

void CallFrame::Finish(const absl::Status& status) const noexcept {
  const absl::Duration elapsed = services_.clock.Now() - arrival_;
  services_.metrics.calls_by_code[static_cast<int>(status.code())].Add();
  services_.metrics.call_seconds.Observe(absl::ToDoubleSeconds(elapsed));
  // A record that cannot be written is lost, the answer is not.
  ContainExceptions([&] {
    services_.call_log.Record({rpc_, request_id_, identity_.tenant, peer_, status, elapsed});
    return absl::OkStatus();
  }).IgnoreError();
}

}  // namespace attention::server
