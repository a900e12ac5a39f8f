#include "server/memory/result_ledger.h"

#include <unordered_map>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "server/base/error_reason.h"
#include "server/base/mutex.h"
#include "server/domain/tenant_share.h"

namespace attention::server {

struct ResultLedger::Held {
  Mutex mutex;
  std::int64_t bytes ABSL_GUARDED_BY(mutex) = 0;
  // The bytes of each tenant that holds some.
  std::unordered_map<std::string, std::int64_t> by_tenant ABSL_GUARDED_BY(mutex);
};

// The bytes that one charge holds, given back with it.
class ResultLedger::Holding {
 public:
  Holding(std::shared_ptr<Held> held, std::string tenant, std::int64_t bytes)
      : held_(std::move(held)), tenant_(std::move(tenant)), bytes_(bytes) {}
  ~Holding() {
    MutexLock lock(&held_->mutex);
    held_->bytes -= bytes_;
    const auto it = held_->by_tenant.find(tenant_);
    it->second -= bytes_;
    if (it->second == 0) held_->by_tenant.erase(it);
  }
  Holding(const Holding&) = delete;
  Holding& operator=(const Holding&) = delete;

 private:
  const std::shared_ptr<Held> held_;
  const std::string tenant_;
  const std::int64_t bytes_;
};

ResultLedger::ResultLedger(std::int64_t max_bytes)
    : max_bytes_(max_bytes), held_(std::make_shared<Held>()) {}

absl::StatusOr<ResultLedger::Charge> ResultLedger::Take(const std::string& tenant,
                                                        std::int64_t bytes) {
  // A client that reads makes room as fast as its network goes.
  constexpr absl::Duration kRetryDelay = absl::Milliseconds(100);
  {
    MutexLock lock(&held_->mutex);
    const auto it = held_->by_tenant.find(tenant);
    const std::int64_t of_tenant = it == held_->by_tenant.end() ? 0 : it->second;
    if (!HasRoom(held_->bytes, of_tenant, bytes, max_bytes_)) {
      return ReasonedError(
          absl::StatusCode::kResourceExhausted, ErrorReason::kQueueFull,
          absl::StrCat("results that are computed or not yet read may take ", max_bytes_,
                       " bytes (max-result-bytes); there is no room for this request's ", bytes,
                       " beside the tenant's ", of_tenant),
          {}, kRetryDelay);
    }
    held_->bytes += bytes;
    held_->by_tenant[tenant] += bytes;
  }
  return Charge(std::make_shared<const Holding>(held_, tenant, bytes));
}

std::int64_t ResultLedger::bytes() const {
  MutexLock lock(&held_->mutex);
  return held_->bytes;
}

}  // namespace attention::server
