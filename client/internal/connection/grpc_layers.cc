// The layer calls of GrpcConnection. A layer is made, converted and deleted on every target, one
// after another, so that any of them can compute it.
#include <functional>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "attention/v1/layer_service.pb.h"
#include "client/internal/base/status_macros.h"
#include "client/internal/connection/grpc_connection.h"
#include "client/internal/convert/convert.h"
#include "client/internal/convert/page_token.h"
#include "client/internal/stream/upload_call.h"

namespace attention::client::internal {
namespace {

// A name that every target and every attempt is given, so that a retry finds what the first attempt
// made.
std::string NewLayerId() { return absl::StrCat("layer-", NewUniqueId()); }

// Calls start(target, next) for each target in turn until one fails; `done` gets the last outcome.
template <typename Result>
class EveryTarget : public std::enable_shared_from_this<EveryTarget<Result>> {
 public:
  using Done = std::function<void(absl::StatusOr<Result>)>;
  using Start = std::function<void(std::size_t target, Done next)>;

  static void Run(std::size_t num_targets, Start start, Done done) {
    auto run = std::make_shared<EveryTarget>();
    run->num_targets_ = num_targets;
    run->start_ = std::move(start);
    run->done_ = std::move(done);
    run->Next(0);
  }

 private:
  void Next(std::size_t target) {
    start_(target, [self = this->shared_from_this(), target](absl::StatusOr<Result> outcome) {
      if (!outcome.ok() || target + 1 == self->num_targets_) return self->done_(std::move(outcome));
      self->Next(target + 1);
    });
  }

  std::size_t num_targets_ = 0;
  Start start_;
  Done done_;
};

constexpr auto kLayerFromProto = [](auto& message, const codec::ReceivedMessage&) {
  return FromProto(std::move(*message.mutable_layer()));
};

}  // namespace

void GrpcConnection::CreateLayer(const LayerOptions& request, const CallOptions& options,
                                 Callback<LayerInfo> done) {
  if (absl::Status status = CheckOptions(options); !status.ok()) return done(std::move(status));
  LayerOptions named = request;
  if (named.layer_id.empty()) named.layer_id = NewLayerId();
  absl::StatusOr<std::vector<codec::OutgoingMessage>> wire = ToWire(named);
  if (!wire.ok()) return done(std::move(wire).status());
  auto messages = std::make_shared<std::vector<grpc::ByteBuffer>>();
  for (codec::OutgoingMessage& message : *wire) {
    absl::StatusOr<grpc::ByteBuffer> bytes = transport_->Serialize(std::move(message));
    if (!bytes.ok()) return done(std::move(bytes).status());
    messages->push_back(*std::move(bytes));
  }
  EveryTarget<LayerInfo>::Run(
      transport_->targets().size(),
      [transport = transport_, settings = transport_->Settings(options), messages](
          std::size_t target, Callback<LayerInfo> next) {
        StartUpload(transport, settings, target, messages, std::move(next));
      },
      std::move(done));
}

void GrpcConnection::GetLayer(const std::string& layer_id, const CallOptions& options,
                              Callback<LayerInfo> done) {
  v1::GetLayerRequest message;
  message.set_layer_id(layer_id);
  CallAny(options, ATTENTION_CLIENT_METHOD(LayerService, GetLayer), codec::OutgoingMessage(message),
          Reading<v1::GetLayerResponse>(std::move(done), kLayerFromProto));
}

void GrpcConnection::ListLayers(const ListLayersRequest& request, const CallOptions& options,
                                Callback<ListLayersResult> done) {
  v1::ListLayersRequest message;
  message.set_page_size(request.page_size);
  message.set_page_token(request.page_token);
  CallAny(options, ATTENTION_CLIENT_METHOD(LayerService, ListLayers),
          codec::OutgoingMessage(message),
          Reading<v1::ListLayersResponse>(std::move(done),
                                          [](auto& answer, const codec::ReceivedMessage&) {
                                            return FromProto(std::move(answer));
                                          }));
}

void GrpcConnection::DeleteLayer(const std::string& layer_id, const CallOptions& options,
                                 StatusCallback done) {
  v1::DeleteLayerRequest message;
  message.set_layer_id(layer_id);
  Prepared prepared = Prepare(options, codec::OutgoingMessage(message));
  if (!prepared.ok()) return done(std::move(prepared).status());
  EveryTarget<bool>::Run(
      transport_->targets().size(),
      [transport = transport_, settings = transport_->Settings(options),
       prepared = *std::move(prepared)](std::size_t target, Callback<bool> next) {
        RunUnary(
            transport,
            {settings, Transport::OneTarget(target),
             ATTENTION_CLIENT_METHOD(LayerService, DeleteLayer)},
            prepared,
            [next = std::move(next)](const absl::StatusOr<grpc::ByteBuffer>& answer, std::size_t) {
              if (!answer.ok()) return next(answer.status());
              next(true);
            });
      },
      [done = std::move(done)](const absl::StatusOr<bool>& outcome) { done(outcome.status()); });
}

void GrpcConnection::ConvertLayer(const ConvertLayerRequest& request, const CallOptions& options,
                                  Callback<LayerInfo> done) {
  v1::ConvertLayerRequest message;
  message.set_source_layer_id(request.source_layer_id);
  message.set_layer_id(request.layer_id.empty() ? NewLayerId() : request.layer_id);
  message.set_num_kv_heads(request.num_kv_heads);
  Prepared prepared = Prepare(options, codec::OutgoingMessage(message));
  if (!prepared.ok()) return done(std::move(prepared).status());
  EveryTarget<LayerInfo>::Run(
      transport_->targets().size(),
      [transport = transport_, settings = transport_->Settings(options),
       prepared = *std::move(prepared)](std::size_t target, Callback<LayerInfo> next) {
        RunUnary(transport,
                 {settings, Transport::OneTarget(target),
                  ATTENTION_CLIENT_METHOD(LayerService, ConvertLayer)},
                 prepared, Reading<v1::ConvertLayerResponse>(std::move(next), kLayerFromProto));
      },
      std::move(done));
}

void GrpcConnection::Forward(const ForwardRequest& request, const CallOptions& options,
                             Callback<ForwardResult> done) {
  AnswerCallback read = Reading<v1::ForwardResponse>(
      std::move(done), [](const auto& message, const codec::ReceivedMessage& received) {
        return FromWire(message, received);
      });
  static constexpr char kMethod[] = ATTENTION_CLIENT_METHOD(LayerService, Forward);
  if (request.sessions.empty()) {
    return CallAny(options, kMethod, ToWire(request), std::move(read));
  }
  CallOwner(request.sessions[0].handle.server_name, options, kMethod, ToWire(request),
            std::move(read));
}

}  // namespace attention::client::internal
