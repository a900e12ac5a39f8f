// The layer calls of Client.
#include <utility>

#include "attention/client/client.h"
#include "client/internal/base/future.h"

namespace attention::client {
namespace {

using internal::FutureOf;
using internal::Waiting;

// Hands on a layer to be driven over `connection`.
Callback<LayerInfo> MakingLayer(std::shared_ptr<Connection> connection, Callback<Layer> done) {
  return
      [connection = std::move(connection), done = std::move(done)](absl::StatusOr<LayerInfo> info) {
        if (!info.ok()) return done(std::move(info).status());
        done(Layer(connection, *std::move(info)));
      };
}

}  // namespace

absl::StatusOr<Layer> Client::CreateLayer(const LayerOptions& request, const CallOptions& options) {
  return CreateLayerFuture(request, Waiting(options)).get();
}

Future<Layer> Client::CreateLayerFuture(const LayerOptions& request, const CallOptions& options) {
  return FutureOf<absl::StatusOr<Layer>>(
      [&](auto done) { CreateLayerAsync(request, options, std::move(done)); });
}

void Client::CreateLayerAsync(const LayerOptions& request, const CallOptions& options,
                              Callback<Layer> done) {
  connection_->CreateLayer(request, options, MakingLayer(connection_, std::move(done)));
}

absl::StatusOr<Layer> Client::GetLayer(const std::string& layer_id, const CallOptions& options) {
  return GetLayerFuture(layer_id, Waiting(options)).get();
}

Future<Layer> Client::GetLayerFuture(const std::string& layer_id, const CallOptions& options) {
  return FutureOf<absl::StatusOr<Layer>>(
      [&](auto done) { GetLayerAsync(layer_id, options, std::move(done)); });
}

void Client::GetLayerAsync(const std::string& layer_id, const CallOptions& options,
                           Callback<Layer> done) {
  connection_->GetLayer(layer_id, options, MakingLayer(connection_, std::move(done)));
}

absl::StatusOr<ListLayersResult> Client::ListLayers(const ListLayersRequest& request,
                                                    const CallOptions& options) {
  return FutureOf<absl::StatusOr<ListLayersResult>>([&](auto done) {
           connection_->ListLayers(request, Waiting(options), std::move(done));
         })
      .get();
}

absl::Status Client::DeleteLayer(const std::string& layer_id, const CallOptions& options) {
  return FutureOf<absl::Status>([&](auto done) {
           connection_->DeleteLayer(layer_id, Waiting(options), std::move(done));
         })
      .get();
}

absl::StatusOr<Layer> Client::ConvertLayer(const ConvertLayerRequest& request,
                                           const CallOptions& options) {
  return ConvertLayerFuture(request, Waiting(options)).get();
}

Future<Layer> Client::ConvertLayerFuture(const ConvertLayerRequest& request,
                                         const CallOptions& options) {
  return FutureOf<absl::StatusOr<Layer>>(
      [&](auto done) { ConvertLayerAsync(request, options, std::move(done)); });
}

void Client::ConvertLayerAsync(const ConvertLayerRequest& request, const CallOptions& options,
                               Callback<Layer> done) {
  connection_->ConvertLayer(request, options, MakingLayer(connection_, std::move(done)));
}

absl::StatusOr<ForwardResult> Client::Forward(const ForwardRequest& request,
                                              const CallOptions& options) {
  return ForwardFuture(request, Waiting(options)).get();
}

Future<ForwardResult> Client::ForwardFuture(const ForwardRequest& request,
                                            const CallOptions& options) {
  return FutureOf<absl::StatusOr<ForwardResult>>(
      [&](auto done) { ForwardAsync(request, options, std::move(done)); });
}

void Client::ForwardAsync(const ForwardRequest& request, const CallOptions& options,
                          Callback<ForwardResult> done) {
  connection_->Forward(request, options, std::move(done));
}

}  // namespace attention::client
