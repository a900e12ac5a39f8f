// The sessions of a server: who owns which cache, and until when.
//
// Thread-safety: all methods of SessionTable; Session's own fields are immutable or atomic.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "server/base/clock.h"
#include "server/base/error_reason.h"
#include "server/base/metrics.h"
#include "server/base/mutex.h"
#include "server/cache/kv_cache.h"
#include "server/cache/kv_cache_factory.h"
#include "server/domain/tenant_ledger.h"

namespace attention::server {

// The client's own words, by key.
using SessionLabels = std::map<std::string, std::string>;

struct SessionHandle {
  std::string server_name;
  std::uint64_t server_epoch = 0;
  std::string session_id;
  std::uint64_t writer = 0;
};

enum class SessionState { kIdle, kBusy, kSpilled };

struct Session {
  std::string session_id;
  std::string tenant;
  std::string name;  // the client's, unique among the tenant's; may be empty
  SessionLabels labels;
  absl::Duration ttl;
  absl::Time create_time;
  std::shared_ptr<KvCache> cache;

  std::atomic<std::int64_t> last_used_ns{0};  // Unix time
  std::atomic<int> num_leases{0};             // calls in flight; a leased session never expires
  std::atomic<std::uint64_t> binding{0};      // the stream that it ends with; 0: none
  std::atomic<std::uint64_t> last_writer{0};  // the last one that AttachSession has named

  absl::Time expire_time() const;
  // `own_leases`: those that do not make it busy.
  SessionState state(int own_leases = 0) const;
};

// The sessions to list: those that have all of this.
struct SessionFilter {
  std::string name = {};  // empty: any
  SessionLabels labels = {};
  std::optional<SessionState> state = {};  // absent: any

  bool Matches(const Session& session) const;
};

// Keeps a session from expiring while a call uses it, and restarts its TTL when the call ends.
class SessionLease {
 public:
  SessionLease() = default;
  SessionLease(std::shared_ptr<Session> session, const Clock* clock);
  SessionLease(SessionLease&& other) noexcept;
  SessionLease& operator=(SessionLease&& other) noexcept;
  ~SessionLease();

  explicit operator bool() const { return session_ != nullptr; }
  Session* operator->() const { return session_.get(); }
  const Session& operator*() const { return *session_; }

 private:
  void Release();

  std::shared_ptr<Session> session_;
  const Clock* clock_ = nullptr;
};

class SessionTable {
 public:
  struct Limits {
    std::int64_t max_sessions = 0;
    absl::Duration default_ttl;
    absl::Duration max_ttl;
  };
  struct NewSession {
    std::string tenant;
    absl::Duration ttl;  // zero: the default
    CacheShape shape;
    std::int64_t expected_tokens = 0;
    std::string name = {};  // empty: none
    SessionLabels labels = {};
  };

  // The references must outlive the table.
  SessionTable(std::string server_name, std::uint64_t server_epoch, const Limits& limits,
               const KvCacheFactory& caches, const Clock& clock, ServerMetrics& metrics,
               TenantLimitsTable& tenants);

  const KvCacheFactory& caches() const { return caches_; }
  const std::string& server_name() const { return server_name_; }
  std::uint64_t server_epoch() const { return server_epoch_; }

  // A new session, or the tenant's of this name. RESOURCE_EXHAUSTED QUOTA_EXCEEDED at a limit of
  // the server's or of the tenant's,
  // KV_EXHAUSTED without room for the expected tokens; INVALID_ARGUMENT for a TTL out of range, a
  // name or labels too long or a geometry that cannot be; ALREADY_EXISTS when the name's session
  // has another geometry.
  absl::StatusOr<SessionLease> Create(const NewSession& request);

  // A session to be, or the tenant's of its name.
  struct Candidate {
    NewSession request;
    std::shared_ptr<KvCache> cache = nullptr;  // null beside `named`
    SessionLease named = {};
  };
  // Finds the tenant's sessions of the names, and makes for the others empty caches like that one.
  // The errors are those of Create, but for limits.
  absl::Status MakeCaches(const KvCache& like, std::vector<Candidate>& candidates);
  // Makes sessions of one tenant of the caches: all, or none. Whose name a session has got in the
  // meantime is that one, and its cache is dropped. The errors are those of Create.
  absl::StatusOr<std::vector<SessionLease>> Add(std::vector<Candidate> candidates);

  // Unique in this table, and not 0: for Session::binding.
  std::uint64_t NewBinding() { return ++last_binding_; }
  // Drops the sessions that are bound to this. Calls that use one keep its cache until they end.
  void EndBound(std::uint64_t binding);

  // FAILED_PRECONDITION SESSION_MOVED, NOT_FOUND SESSION_LOST, SESSION_EXPIRED, SESSION_NOT_FOUND.
  absl::StatusOr<SessionLease> Acquire(const SessionHandle& handle, absl::string_view tenant);

  // The errors are those of Acquire, but a session that is gone already is OK; FAILED_PRECONDITION
  // FENCED for a handle that is not the writer's any more.
  absl::Status Delete(const SessionHandle& handle, absl::string_view tenant);

  // The tenant's sessions by ascending id, starting after `after_id`. Being listed keeps none
  // alive.
  std::vector<std::shared_ptr<const Session>> List(absl::string_view tenant,
                                                   absl::string_view after_id,
                                                   std::size_t max_count,
                                                   const SessionFilter& filter = {}) const;

  // Drops sessions idle for longer than their TTL, and those whose cache was lost with their
  // device; returns how many.
  int ExpireIdle();

  std::int64_t num_sessions() const;
  std::int64_t num_sessions(const std::string& tenant) const { return quota_.HeldBy(tenant); }
  std::map<std::string, std::int64_t> sessions_by_tenant() const { return quota_.ByTenant(); }

 private:
  using SessionMap = std::unordered_map<std::string, std::shared_ptr<Session>>;

  absl::Status CheckOwner(const SessionHandle& handle) const;
  using Name = std::pair<std::string, std::string>;  // of the tenant, of the session

  using Gone = std::vector<std::shared_ptr<Session>>;  // to be freed without the lock

  absl::StatusOr<absl::Duration> TtlOf(const NewSession& request) const;
  // The tenant's session of the name, null when there is none; one that is gone is moved to `gone`.
  absl::StatusOr<std::shared_ptr<Session>> FindNamed(const NewSession& request, Gone& gone)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::StatusOr<std::shared_ptr<Session>> MakeSession(const Candidate& candidate) const;
  absl::Status CheckServerQuota(std::int64_t num_new) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Counts and lists them all, or, with the exception, none.
  absl::Status Insert(const std::vector<std::shared_ptr<Session>>& sessions)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status NotFound(const std::string& session_id) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool IsExpired(const Session& session) const;
  // Expired, or lost with its device.
  bool IsGone(const Session& session) const;
  std::shared_ptr<Session> Remove(SessionMap::iterator it) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void RememberGone(const Session& session) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Remember(const std::string& session_id, ErrorReason reason)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const std::string server_name_;
  const std::uint64_t server_epoch_;
  const Limits limits_;
  const KvCacheFactory& caches_;
  const Clock& clock_;
  ServerMetrics& metrics_;
  TenantLedger quota_;
  std::atomic<std::uint64_t> last_binding_{0};

  mutable Mutex mutex_;
  SessionMap sessions_ ABSL_GUARDED_BY(mutex_);
  std::map<Name, std::string> ids_by_name_ ABSL_GUARDED_BY(mutex_);
  // The ids that went most recently, and how, so that their owners are told what happened.
  std::deque<std::string> gone_order_ ABSL_GUARDED_BY(mutex_);
  std::unordered_map<std::string, ErrorReason> gone_ ABSL_GUARDED_BY(mutex_);
};

// 128 random bits in hexadecimal, from the system's generator.
std::string MakeSessionId();

}  // namespace attention::server
