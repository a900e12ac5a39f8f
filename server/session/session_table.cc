#include "server/session/session_table.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/check.h"
#include "server/base/client_text.h"
#include "server/base/error_reason.h"
#include "server/base/random_id.h"
#include "server/base/status_macros.h"

namespace attention::server {
namespace {

// Enough for an hour of one expiry a second; an id is 32 bytes.
constexpr std::size_t kMaxRemembered = 4096;

// Fields that a client sends in a handle come back in errors, which travel in headers of a few KiB.
constexpr std::size_t kMaxHandleBytes = 256;
constexpr std::size_t kMaxNameBytes = 128;
constexpr std::size_t kMaxLabels = 16;
constexpr std::size_t kMaxLabelKeyBytes = 64;
constexpr std::size_t kMaxLabelValueBytes = 128;

absl::Status CheckHandleField(absl::string_view field, const std::string& value) {
  if (value.size() <= kMaxHandleBytes) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(field, " has ", value.size(), " bytes, expected at most ", kMaxHandleBytes));
}

absl::Status CheckName(const std::string& name) {
  if (name.size() <= kMaxNameBytes) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("name has ", name.size(), " bytes, expected at most ", kMaxNameBytes));
}

absl::Status CheckLabels(const SessionLabels& labels) {
  if (labels.size() > kMaxLabels) {
    return absl::InvalidArgumentError(
        absl::StrCat("labels has ", labels.size(), " entries, expected at most ", kMaxLabels));
  }
  for (const auto& [key, value] : labels) {
    if (key.empty() || key.size() > kMaxLabelKeyBytes) {
      return absl::InvalidArgumentError(absl::StrCat("labels has a key of ", key.size(),
                                                     " bytes, expected 1 to ", kMaxLabelKeyBytes));
    }
    if (value.size() > kMaxLabelValueBytes) {
      return absl::InvalidArgumentError(absl::StrCat("labels[", Quoted(key), "] has ", value.size(),
                                                     " bytes, expected at most ",
                                                     kMaxLabelValueBytes));
    }
  }
  return absl::OkStatus();
}

// `reason`: what is remembered of a session that is gone.
const char* HowItWent(ErrorReason reason) {
  switch (reason) {
    case ErrorReason::kSessionLost:
      return " was lost: its device failed and lost its memory";
    case ErrorReason::kSessionExpired:
      return " was idle for longer than its TTL and was dropped";
    default:
      return " ended with the stream that it was bound to";
  }
}

}  // namespace

std::string MakeSessionId() { return MakeRandomId(); }

absl::Time Session::expire_time() const {
  return absl::FromUnixNanos(last_used_ns.load(std::memory_order_relaxed)) + ttl;
}

SessionState Session::state(int own_leases) const {
  if (num_leases.load(std::memory_order_relaxed) > own_leases) return SessionState::kBusy;
  return cache->is_spilled() ? SessionState::kSpilled : SessionState::kIdle;
}

bool SessionFilter::Matches(const Session& session) const {
  if (!name.empty() && name != session.name) return false;
  if (state && *state != session.state()) return false;
  return std::includes(session.labels.begin(), session.labels.end(), labels.begin(), labels.end());
}

SessionLease::SessionLease(std::shared_ptr<Session> session, const Clock* clock)
    : session_(std::move(session)), clock_(clock) {
  session_->num_leases.fetch_add(1, std::memory_order_relaxed);
  session_->last_used_ns.store(absl::ToUnixNanos(clock_->Now()), std::memory_order_relaxed);
}

SessionLease::SessionLease(SessionLease&& other) noexcept
    : session_(std::move(other.session_)), clock_(other.clock_) {}

SessionLease& SessionLease::operator=(SessionLease&& other) noexcept {
  if (this != &other) {
    Release();
    session_ = std::move(other.session_);
    clock_ = other.clock_;
  }
  return *this;
}

SessionLease::~SessionLease() { Release(); }

void SessionLease::Release() {
  if (session_ == nullptr) return;
  session_->last_used_ns.store(absl::ToUnixNanos(clock_->Now()), std::memory_order_relaxed);
  session_->num_leases.fetch_sub(1, std::memory_order_release);
  session_.reset();
}

SessionTable::SessionTable(std::string server_name, std::uint64_t server_epoch,
                           const Limits& limits, const KvCacheFactory& caches, const Clock& clock,
                           ServerMetrics& metrics, TenantLimitsTable& tenants)
    : server_name_(std::move(server_name)),
      server_epoch_(server_epoch),
      limits_(limits),
      caches_(caches),
      clock_(clock),
      metrics_(metrics),
      quota_(TenantLimit::kSessions, &TenantLimits::sessions, tenants) {}

absl::Status SessionTable::CheckServerQuota(std::int64_t num_new) const {
  const auto count = static_cast<std::int64_t>(sessions_.size());
  if (count + num_new <= limits_.max_sessions) return absl::OkStatus();
  return ReasonedError(absl::StatusCode::kResourceExhausted, ErrorReason::kQuotaExceeded,
                       absl::StrCat("the server holds ", count, " sessions, ", num_new,
                                    " more are beyond its limit (max_sessions)"));
}

absl::StatusOr<absl::Duration> SessionTable::TtlOf(const NewSession& request) const {
  const absl::Duration ttl = request.ttl == absl::ZeroDuration()
                                 ? std::min(limits_.default_ttl, limits_.max_ttl)
                                 : request.ttl;
  if (ttl > absl::ZeroDuration() && ttl <= limits_.max_ttl) return ttl;
  return absl::InvalidArgumentError(absl::StrCat("ttl is ", absl::FormatDuration(ttl),
                                                 ", expected more than 0 and at most ",
                                                 absl::FormatDuration(limits_.max_ttl)));
}

absl::StatusOr<std::shared_ptr<Session>> SessionTable::FindNamed(const NewSession& request,
                                                                 Gone& gone) {
  if (request.name.empty()) return std::shared_ptr<Session>();
  const auto named = ids_by_name_.find({request.tenant, request.name});
  if (named == ids_by_name_.end()) return std::shared_ptr<Session>();
  const auto it = sessions_.find(named->second);
  if (IsGone(*it->second)) {
    gone.push_back(Remove(it));
    RememberGone(*gone.back());
    return std::shared_ptr<Session>();
  }
  if (it->second->cache->shape() != request.shape) {
    return absl::AlreadyExistsError(
        "name is that of a session with another geometry, expected a free name or the same "
        "geometry");
  }
  return it->second;
}

absl::StatusOr<SessionLease> SessionTable::Create(const NewSession& request) {
  ATTENTION_RETURN_IF_ERROR(CheckName(request.name));
  ATTENTION_RETURN_IF_ERROR(CheckLabels(request.labels));
  ATTENTION_RETURN_IF_ERROR(TtlOf(request).status());
  Gone gone;
  {
    MutexLock lock(&mutex_);
    ATTENTION_ASSIGN_OR_RETURN(const std::shared_ptr<Session> named, FindNamed(request, gone));
    if (named != nullptr) return SessionLease(named, &clock_);
  }
  std::vector<Candidate> candidates(1);
  candidates[0].request = request;
  ATTENTION_ASSIGN_OR_RETURN(
      candidates[0].cache, caches_.Create(request.shape, request.expected_tokens, request.tenant));
  ATTENTION_ASSIGN_OR_RETURN(std::vector<SessionLease> added, Add(std::move(candidates)));
  return std::move(added[0]);
}

absl::Status SessionTable::MakeCaches(const KvCache& like, std::vector<Candidate>& candidates) {
  Gone gone;
  for (Candidate& candidate : candidates) {
    ATTENTION_RETURN_IF_ERROR(CheckName(candidate.request.name));
    ATTENTION_RETURN_IF_ERROR(TtlOf(candidate.request).status());
    if (!candidate.request.name.empty()) {
      MutexLock lock(&mutex_);
      ATTENTION_ASSIGN_OR_RETURN(const std::shared_ptr<Session> named,
                                 FindNamed(candidate.request, gone));
      if (named != nullptr) candidate.named = SessionLease(named, &clock_);
    }
    if (!candidate.named) candidate.cache = caches_.CreateLike(like);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<Session>> SessionTable::MakeSession(
    const Candidate& candidate) const {
  auto session = std::make_shared<Session>();
  session->session_id = MakeSessionId();
  session->tenant = candidate.request.tenant;
  session->name = candidate.request.name;
  session->labels = candidate.request.labels;
  ATTENTION_ASSIGN_OR_RETURN(session->ttl, TtlOf(candidate.request));
  session->create_time = clock_.Now();
  session->cache = candidate.cache;
  return session;
}

absl::Status SessionTable::Insert(const std::vector<std::shared_ptr<Session>>& sessions) {
  if (sessions.empty()) return absl::OkStatus();
  const auto count = static_cast<std::int64_t>(sessions.size());
  const std::string& tenant = sessions[0]->tenant;
  ATTENTION_RETURN_IF_ERROR(CheckServerQuota(count));
  ATTENTION_RETURN_IF_ERROR(quota_.Take(tenant, count));
  try {
    for (const std::shared_ptr<Session>& session : sessions) {
      sessions_.emplace(session->session_id, session);
      if (!session->name.empty()) ids_by_name_[{tenant, session->name}] = session->session_id;
    }
  } catch (...) {
    for (const std::shared_ptr<Session>& session : sessions) {
      sessions_.erase(session->session_id);
      if (!session->name.empty()) ids_by_name_.erase({tenant, session->name});
    }
    quota_.Give(tenant, count);
    throw;
  }
  metrics_.sessions_created.Add(count);
  return absl::OkStatus();
}

absl::StatusOr<std::vector<SessionLease>> SessionTable::Add(std::vector<Candidate> candidates) {
  Gone gone;
  std::vector<std::shared_ptr<Session>> all;
  for (const Candidate& candidate : candidates) {
    if (candidate.named) {
      all.push_back(nullptr);
      continue;
    }
    ATTENTION_ASSIGN_OR_RETURN(std::shared_ptr<Session> session, MakeSession(candidate));
    all.push_back(std::move(session));
  }
  std::vector<SessionLease> leases;
  leases.reserve(candidates.size());
  MutexLock lock(&mutex_);
  std::vector<std::shared_ptr<Session>> added;
  for (std::size_t i = 0; i < candidates.size(); ++i) {
    if (candidates[i].named) continue;
    // A call of the same name may have been faster.
    ATTENTION_ASSIGN_OR_RETURN(const std::shared_ptr<Session> named,
                               FindNamed(candidates[i].request, gone));
    if (named != nullptr) {
      gone.push_back(std::exchange(all[i], named));
    } else {
      added.push_back(all[i]);
    }
  }
  ATTENTION_RETURN_IF_ERROR(Insert(added));
  for (std::size_t i = 0; i < candidates.size(); ++i) {
    leases.push_back(candidates[i].named ? std::move(candidates[i].named)
                                         : SessionLease(all[i], &clock_));
  }
  return leases;
}

absl::Status SessionTable::CheckOwner(const SessionHandle& handle) const {
  if (handle.session_id.empty()) {
    return absl::InvalidArgumentError(
        "handle.session_id is empty, expected the id that CreateSession returned");
  }
  ATTENTION_RETURN_IF_ERROR(CheckHandleField("handle.session_id", handle.session_id));
  ATTENTION_RETURN_IF_ERROR(CheckHandleField("handle.server_name", handle.server_name));
  if (handle.server_name != server_name_) {
    return ReasonedError(absl::StatusCode::kFailedPrecondition, ErrorReason::kSessionMoved,
                         absl::StrCat("handle.server_name is ", Quoted(handle.server_name),
                                      ", but this is ", Quoted(server_name_)),
                         {{"server_name", handle.server_name}});
  }
  if (handle.server_epoch != server_epoch_) {
    return ReasonedError(absl::StatusCode::kNotFound, ErrorReason::kSessionLost,
                         absl::StrCat("session ", Quoted(handle.session_id), " was lost: server ",
                                      Quoted(server_name_), " restarted (handle.server_epoch is ",
                                      handle.server_epoch, ", expected ", server_epoch_, ")"));
  }
  return absl::OkStatus();
}

absl::Status SessionTable::NotFound(const std::string& session_id) const {
  if (const auto it = gone_.find(session_id); it != gone_.end()) {
    return ReasonedError(absl::StatusCode::kNotFound, it->second,
                         absl::StrCat("session ", Quoted(session_id), HowItWent(it->second)));
  }
  return ReasonedError(
      absl::StatusCode::kNotFound, ErrorReason::kSessionNotFound,
      absl::StrCat("handle.session_id ", Quoted(session_id), " names no session of this tenant"));
}

bool SessionTable::IsExpired(const Session& session) const {
  return session.num_leases.load(std::memory_order_acquire) == 0 &&
         clock_.Now() >= session.expire_time();
}

bool SessionTable::IsGone(const Session& session) const {
  return session.cache->is_lost() || IsExpired(session);
}

std::shared_ptr<Session> SessionTable::Remove(SessionMap::iterator it) {
  std::shared_ptr<Session> session = std::move(it->second);
  sessions_.erase(it);
  quota_.Give(session->tenant, 1);
  if (!session->name.empty()) ids_by_name_.erase({session->tenant, session->name});
  return session;
}

void SessionTable::RememberGone(const Session& session) {
  const bool is_lost = session.cache->is_lost();
  (is_lost ? metrics_.sessions_lost : metrics_.sessions_expired).Add();
  Remember(session.session_id, is_lost ? ErrorReason::kSessionLost : ErrorReason::kSessionExpired);
}

void SessionTable::Remember(const std::string& session_id, ErrorReason reason) {
  gone_order_.push_back(session_id);
  gone_[session_id] = reason;
  if (gone_order_.size() <= kMaxRemembered) return;
  gone_.erase(gone_order_.front());
  gone_order_.pop_front();
}

absl::StatusOr<SessionLease> SessionTable::Acquire(const SessionHandle& handle,
                                                   absl::string_view tenant) {
  ATTENTION_RETURN_IF_ERROR(CheckOwner(handle));
  std::shared_ptr<Session> gone;  // freed after the lock: it may return many pages
  MutexLock lock(&mutex_);
  const auto it = sessions_.find(handle.session_id);
  if (it == sessions_.end() || it->second->tenant != tenant) return NotFound(handle.session_id);
  if (IsGone(*it->second)) {
    gone = Remove(it);
    RememberGone(*gone);
    return NotFound(handle.session_id);
  }
  return SessionLease(it->second, &clock_);
}

absl::Status SessionTable::Delete(const SessionHandle& handle, absl::string_view tenant) {
  ATTENTION_RETURN_IF_ERROR(CheckOwner(handle));
  std::shared_ptr<Session> removed;
  MutexLock lock(&mutex_);
  const auto it = sessions_.find(handle.session_id);
  if (it == sessions_.end() || it->second->tenant != tenant) return absl::OkStatus();
  ATTENTION_RETURN_IF_ERROR(it->second->cache->CheckWriter(handle.writer));
  removed = Remove(it);
  return absl::OkStatus();
}

void SessionTable::EndBound(std::uint64_t binding) {
  std::vector<std::shared_ptr<Session>> ended;  // freed after the lock
  MutexLock lock(&mutex_);
  for (auto it = sessions_.begin(); it != sessions_.end();) {
    const auto current = it++;
    if (current->second->binding.load() != binding) continue;
    ended.push_back(Remove(current));
    Remember(ended.back()->session_id, ErrorReason::kSessionNotFound);
  }
}

std::vector<std::shared_ptr<const Session>> SessionTable::List(absl::string_view tenant,
                                                               absl::string_view after_id,
                                                               std::size_t max_count,
                                                               const SessionFilter& filter) const {
  std::vector<std::shared_ptr<const Session>> found;
  {
    MutexLock lock(&mutex_);
    for (const auto& [id, session] : sessions_) {
      if (session->tenant == tenant && id > after_id && !IsGone(*session) &&
          filter.Matches(*session)) {
        found.push_back(session);
      }
    }
  }
  std::sort(found.begin(), found.end(),
            [](const auto& a, const auto& b) { return a->session_id < b->session_id; });
  if (found.size() > max_count) found.resize(max_count);
  return found;
}

int SessionTable::ExpireIdle() {
  std::vector<std::shared_ptr<Session>> gone;
  MutexLock lock(&mutex_);
  for (auto it = sessions_.begin(); it != sessions_.end();) {
    const auto current = it++;
    if (!IsGone(*current->second)) continue;
    gone.push_back(Remove(current));
    RememberGone(*gone.back());
  }
  return static_cast<int>(gone.size());
}

std::int64_t SessionTable::num_sessions() const {
  MutexLock lock(&mutex_);
  return static_cast<std::int64_t>(sessions_.size());
}

}  // namespace attention::server
