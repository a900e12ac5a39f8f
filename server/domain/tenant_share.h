// The part of a shared resource that one tenant may hold.
#pragma once

#include <cstdint>

namespace attention::server {

// True when `amount` more may join, of a resource of which `held` is in use, `held_by_tenant` of it
// by the tenant. A tenant may hold at most four times of what it leaves free (dynamic thresholds:
// Choudhury, Hahne 1998), so that one that floods leaves a fifth to others, two leave a ninth, and
// nobody is shut out.
constexpr bool HasRoom(std::int64_t held, std::int64_t held_by_tenant, std::int64_t amount,
                       std::int64_t limit) {
  constexpr std::int64_t kMaxTimesOfFree = 4;
  const std::int64_t free = limit - held;
  return amount <= free && held_by_tenant / kMaxTimesOfFree < free;
}

}  // namespace attention::server
