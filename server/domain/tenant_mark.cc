#include "server/domain/tenant_mark.h"

#include <string>
#include <utility>

#include "absl/hash/hash.h"
#include "server/base/random_id.h"

namespace attention::server {

TenantMark MarkOf(absl::string_view tenant) {
  static const std::string* const key = new std::string(MakeRandomId());  // for calls at exit
  const TenantMark mark =
      absl::Hash<std::pair<absl::string_view, absl::string_view>>()({*key, tenant});
  return mark == kNobody || mark == kSeveral ? 1 : mark;
}

}  // namespace attention::server
