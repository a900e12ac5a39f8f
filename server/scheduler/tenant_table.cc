#include "server/scheduler/tenant_table.h"

namespace attention::server {
namespace {

bool IsIdle(const TenantQueue& queue) {
  return !queue.HasWork() && !queue.is_active && queue.num_running == 0;
}

}  // namespace

TenantTable::TenantTable(const Limits& limits) : limits_(limits) {
  shared_.is_shared = true;
  // Before the shares are read: one that changes between is read again.
  if (limits_.limits != nullptr) generation_ = limits_.limits->generation();
  shares_ =
      limits_.limits != nullptr ? limits_.limits->all() : std::make_shared<const TenantLimitsSet>();
  shared_.weight = shares_->others.share;
}

bool TenantTable::FollowShares() {
  if (limits_.limits == nullptr || limits_.limits->generation() == generation_) return false;
  generation_ = limits_.limits->generation();
  shares_ = limits_.limits->all();
  shared_.weight = shares_->others.share;
  for (auto& [name, known] : known_) {
    known.queue.weight = WeightOf(name);
    const bool was_listed = known.age == by_age_.end();
    if (was_listed == IsListed(name)) continue;
    if (was_listed) {
      known.age = by_age_.insert(by_age_.end(), name);
    } else {
      by_age_.erase(known.age);
      known.age = by_age_.end();
    }
  }
  return true;
}

bool TenantTable::HasPlace(absl::Time now) const {
  if (static_cast<std::int64_t>(by_age_.size()) < limits_.max_unlisted) return true;
  if (by_age_.empty()) return false;
  const Known& oldest = known_.at(by_age_.front());
  return IsIdle(oldest.queue) && now - oldest.last_joined >= limits_.memory;
}

void TenantTable::RenewOldest(absl::Time now) {
  if (by_age_.empty()) return;
  Known& oldest = known_.at(by_age_.front());
  if (IsIdle(oldest.queue)) return;
  oldest.last_joined = now;
  by_age_.splice(by_age_.end(), by_age_, oldest.age);
}

TenantQueue& TenantTable::Join(const std::string& name, absl::Time now) {
  const auto found = known_.find(name);
  if (found != known_.end()) {
    Known& known = found->second;
    known.last_joined = now;
    if (known.age != by_age_.end()) by_age_.splice(by_age_.end(), by_age_, known.age);
    return known.queue;
  }
  RenewOldest(now);
  const bool is_listed = IsListed(name);
  // A name stays in the shared queue while it waits there: its steps must not overtake each other.
  if (waiting_in_shared_.count(name) > 0 || (!is_listed && !HasPlace(now))) {
    ++waiting_in_shared_[name];
    return shared_;
  }
  // More than one when tenants have ceased to be listed.
  while (!is_listed && static_cast<std::int64_t>(by_age_.size()) >= limits_.max_unlisted &&
         IsIdle(known_.at(by_age_.front()).queue)) {
    known_.erase(by_age_.front());
    by_age_.pop_front();
  }
  std::list<std::string> age;
  if (!is_listed) age.push_back(name);
  Known& known = known_[name];  // what may throw is over
  known.queue.weight = WeightOf(name);
  known.age = is_listed ? by_age_.end() : age.begin();
  by_age_.splice(by_age_.end(), age);
  known.last_joined = now;
  return known.queue;
}

void TenantTable::Leave(const TenantQueue& queue, const std::string& name) {
  if (!queue.is_shared) return;
  const auto it = waiting_in_shared_.find(name);
  if (--it->second == 0) waiting_in_shared_.erase(it);
}

const TenantQueue* TenantTable::Find(const std::string& name, absl::Time now) const {
  if (const auto it = known_.find(name); it != known_.end()) return &it->second.queue;
  if (waiting_in_shared_.count(name) > 0) return &shared_;
  return IsListed(name) || HasPlace(now) ? nullptr : &shared_;
}

std::map<std::string, std::int64_t> TenantTable::BytesByTenant() const {
  std::map<std::string, std::int64_t> bytes;
  for (const auto& [name, known] : known_) {
    if (known.queue.load.bytes > 0) bytes[name] = known.queue.load.bytes;
  }
  if (shared_.load.bytes > 0) bytes[""] = shared_.load.bytes;
  return bytes;
}

std::int64_t TenantTable::NumWaiting(const std::string& name) const {
  if (const auto it = known_.find(name); it != known_.end()) return it->second.queue.load.requests;
  const auto it = waiting_in_shared_.find(name);
  return it == waiting_in_shared_.end() ? 0 : it->second;
}

}  // namespace attention::server
