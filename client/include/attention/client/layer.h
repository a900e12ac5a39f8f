// A layer of the server, to be called.
//
//   auto layer = client->CreateLayer({.config = config, .weights = weights});
//   auto y = layer->Forward({.x = x});
//
// Thread-safe: a Layer never changes. It may be destroyed at any time; the server keeps the layer
// until Delete.
#pragma once

#include <future>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "attention/client/connection.h"
#include "attention/client/layer_types.h"
#include "attention/client/options.h"

namespace attention::client {

class Layer {
 public:
  Layer(std::shared_ptr<Connection> connection, LayerInfo info)
      : connection_(std::move(connection)), info_(std::move(info)) {}

  const LayerInfo& info() const { return info_; }
  const std::string& id() const { return info_.layer_id; }

  // Client::Forward with this layer's id.
  absl::StatusOr<ForwardResult> Forward(ForwardRequest request,
                                        const CallOptions& options = {}) const;
  std::future<absl::StatusOr<ForwardResult>> ForwardFuture(ForwardRequest request,
                                                           const CallOptions& options = {}) const;
  void ForwardAsync(ForwardRequest request, const CallOptions& options,
                    Callback<ForwardResult> done) const;

  // Forgets the layer; OK also when it was gone already.
  absl::Status Delete(const CallOptions& options = {}) const;

 private:
  std::shared_ptr<Connection> connection_;
  LayerInfo info_;
};

}  // namespace attention::client
