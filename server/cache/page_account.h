// The pool from which a cache has its pages, and who they count for.
//
// Thread-safety: all methods; immutable.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "server/cache/page_pool.h"
#include "server/domain/tenant_ledger.h"
#include "server/domain/tenant_mark.h"

namespace attention::server {

// The tenant whose the pages of a cache are, and who counts those on devices. Null: nobody does.
struct CacheOwner {
  std::string tenant = {};
  TenantLedger* ledger = nullptr;
};

class PageAccount {
 public:
  // The pool, of a device, and the owner's ledger must outlive the account.
  PageAccount(PagePool& pool, CacheOwner owner)
      : pool_(pool), owner_(std::move(owner)), mark_(MarkOf(owner_.tenant)) {}
  PageAccount(const PageAccount&) = delete;
  PageAccount& operator=(const PageAccount&) = delete;

  PagePool& pool() const { return pool_; }
  const CacheOwner& owner() const { return owner_; }
  TenantMark mark() const { return mark_; }

  // Counts bytes on the device for the owner. RESOURCE_EXHAUSTED QUOTA_EXCEEDED.
  absl::Status Charge(std::size_t bytes) const {
    if (owner_.ledger == nullptr) return absl::OkStatus();
    return owner_.ledger->Take(owner_.tenant, static_cast<std::int64_t>(bytes));
  }
  void GiveBack(std::size_t bytes) const noexcept {
    if (owner_.ledger == nullptr || bytes == 0) return;
    owner_.ledger->Give(owner_.tenant, static_cast<std::int64_t>(bytes));
  }
  // The part of so many bytes more that the owner may not have.
  std::size_t Excess(std::size_t bytes) const {
    if (owner_.ledger == nullptr) return 0;
    return static_cast<std::size_t>(
        owner_.ledger->Excess(owner_.tenant, static_cast<std::int64_t>(bytes)));
  }

 private:
  PagePool& pool_;
  const CacheOwner owner_;
  const TenantMark mark_;
};

}  // namespace attention::server
