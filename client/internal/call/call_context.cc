#include "client/internal/call/call_context.h"

namespace attention::client::internal {

CallContext::CallContext(const CallSettings& settings) {
  if (settings.deadline != absl::InfiniteFuture()) {
    context_.set_deadline(absl::ToChronoTime(settings.deadline));
  }
  if (settings.identity != nullptr) status_ = settings.identity->AddTo(&context_);
  context_.AddMetadata(kRequestIdKey, settings.request_id);
  if (settings.cancellation.stop_possible()) {
    // A cancel before the attempt starts is remembered by the context.
    on_cancel_.emplace(settings.cancellation, [this] { context_.TryCancel(); });
  }
}

}  // namespace attention::client::internal
