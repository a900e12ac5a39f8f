#include "server/base/descriptors.h"

#include <sys/resource.h>

#include <algorithm>
#include <limits>

namespace attention::server {
namespace {

// More would cost gigabytes in gRPC before anything is computed.
constexpr std::int64_t kMostByDefault = 10000;

std::int64_t Clamped(rlim_t limit) {
  constexpr auto kMax = static_cast<rlim_t>(std::numeric_limits<std::int64_t>::max());
  return static_cast<std::int64_t>(std::min(limit, kMax));
}

}  // namespace

std::int64_t DescriptorLimit() {
  rlimit limit{};
  return getrlimit(RLIMIT_NOFILE, &limit) == 0 ? Clamped(limit.rlim_cur) : 0;
}

std::int64_t RaiseDescriptorLimit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return 0;
  if (limit.rlim_cur < limit.rlim_max) {
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
  }
  return DescriptorLimit();
}

std::int64_t DefaultMaxConnections(std::int64_t descriptor_limit) {
  const std::int64_t others = std::min<std::int64_t>(256, descriptor_limit / 2);
  return std::clamp<std::int64_t>((descriptor_limit - others) / 4 * 3, 1, kMostByDefault);
}

std::int64_t LargestMaxConnections(std::int64_t descriptor_limit) {
  constexpr std::int64_t kOthers = 64;
  return std::max<std::int64_t>(1, descriptor_limit - kOthers);
}

}  // namespace attention::server
