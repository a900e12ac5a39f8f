#include "client/internal/call/acceptance.h"

#include <cstddef>

#include "absl/strings/str_cat.h"
#include "client/internal/call/plain_call.h"
#include "client/internal/convert/error_details.h"

namespace attention::client::internal {

absl::Status CheckAccepted(Transport& transport, absl::Time deadline) {
  if (TokenSource* token = transport.identity()->token(); token != nullptr) {
    if (absl::Status status = token->Token().status(); !status.ok()) return status;
  }
  const CallSettings settings = transport.Settings({.deadline = deadline});
  for (std::size_t target = 0; target < transport.targets().size(); ++target) {
    const grpc::Slice nothing;  // an empty GetServerInfoRequest
    absl::Status outcome;
    CallOnce(transport.targets().EndpointOf(target), settings,
             ATTENTION_CLIENT_METHOD(ServerService, GetServerInfo), grpc::ByteBuffer(&nothing, 1),
             /*may_block=*/true,
             [&outcome](const absl::Status& status, const grpc::ByteBuffer&) { outcome = status; });
    if (absl::IsUnauthenticated(outcome) || absl::IsPermissionDenied(outcome)) {
      return Annotate(outcome, absl::StrCat("from ", transport.targets().AddressOf(target)));
    }
  }
  return absl::OkStatus();
}

}  // namespace attention::client::internal
