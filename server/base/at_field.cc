#include "server/base/at_field.h"

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"

namespace attention::server {

absl::Status AtField(absl::string_view field, const absl::Status& status) {
  if (status.ok()) return status;
  absl::Status named(status.code(), absl::StrCat(field, ".", status.message()));
  status.ForEachPayload(
      [&](absl::string_view url, const absl::Cord& payload) { named.SetPayload(url, payload); });
  return named;
}

}  // namespace attention::server
