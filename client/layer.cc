#include "attention/client/layer.h"

#include <utility>

#include "client/internal/base/future.h"

namespace attention::client {

absl::StatusOr<ForwardResult> Layer::Forward(ForwardRequest request,
                                             const CallOptions& options) const {
  return ForwardFuture(std::move(request), internal::Waiting(options)).get();
}

std::future<absl::StatusOr<ForwardResult>> Layer::ForwardFuture(ForwardRequest request,
                                                                const CallOptions& options) const {
  return internal::FutureOf<absl::StatusOr<ForwardResult>>(
      [&](auto done) { ForwardAsync(std::move(request), options, std::move(done)); });
}

void Layer::ForwardAsync(ForwardRequest request, const CallOptions& options,
                         Callback<ForwardResult> done) const {
  request.layer_id = info_.layer_id;
  connection_->Forward(request, options, std::move(done));
}

absl::Status Layer::Delete(const CallOptions& options) const {
  return internal::FutureOf<absl::Status>([&](auto done) {
           connection_->DeleteLayer(info_.layer_id, internal::Waiting(options), std::move(done));
         })
      .get();
}

}  // namespace attention::client
