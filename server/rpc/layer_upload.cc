#include "server/rpc/layer_upload.h"

#include <grpcpp/impl/codegen/proto_utils.h>

#include <new>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "proto/codec/outgoing_message.h"
#include "server/base/at_field.h"
#include "server/base/error_reason.h"
#include "server/base/status_macros.h"
#include "server/rpc/layer_decoder.h"
#include "server/rpc/status_mapping.h"
#include "server/rpc/tensor_decoder.h"

namespace attention::server {

absl::Status LayerAssembly::Begin(const v1::NewLayer& wire) {
  if (tensors_) {
    return absl::InvalidArgumentError("layer was sent twice, expected in the first message only");
  }
  if (!wire.has_config()) {
    return absl::InvalidArgumentError("layer.config is missing, expected what the layer computes");
  }
  if (!wire.sha256().empty() && wire.sha256().size() != 32) {
    return absl::InvalidArgumentError(
        absl::StrCat("layer.sha256 has ", wire.sha256().size(), " bytes, expected 32 or none"));
  }
  ATTENTION_RETURN_IF_ERROR(AtField("layer", CheckLayerId(wire.layer_id())));
  layer_.tenant = tenant_;
  layer_.layer_id = wire.layer_id();
  auto spec = DecodeLayerConfig(wire.config());
  if (!spec.ok()) return AtField("layer.config", spec.status());
  layer_.spec = *std::move(spec);
  ATTENTION_ASSIGN_OR_RETURN(reservation_, layers_.Reserve(layer_));
  sha256_ = wire.sha256();
  tensors_.emplace(layer_.spec);
  return absl::OkStatus();
}

absl::Status LayerAssembly::BeginTensor(const v1::LayerTensor& wire) {
  ATTENTION_ASSIGN_OR_RETURN(const LayerTensor name, DecodeLayerTensorName(wire.name()));
  const std::string field(LayerTensorName(name));
  if (!wire.has_tensor()) {
    return absl::InvalidArgumentError(absl::StrCat(field, ".tensor is missing, expected a tensor"));
  }
  if (wire.tensor().has_shared_memory()) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, ".shared_memory is set, expected data and chunks"));
  }
  ATTENTION_ASSIGN_OR_RETURN(const DType dtype,
                             DecodeDType(field + ".dtype", wire.tensor().dtype()));
  const std::vector<std::int64_t> shape(wire.tensor().shape().begin(), wire.tensor().shape().end());
  return tensors_->Begin(name, dtype, shape, wire.tensor().data());
}

absl::Status LayerAssembly::Add(const v1::CreateLayerRequest& message) {
  if (message.has_layer()) return Begin(message.layer());
  if (!tensors_) {
    return absl::InvalidArgumentError("layer is missing, expected in the first message");
  }
  if (message.has_tensor()) return BeginTensor(message.tensor());
  if (message.part_case() == v1::CreateLayerRequest::kChunk) {
    return tensors_->Append(message.chunk());
  }
  return absl::InvalidArgumentError("part is missing, expected layer, tensor or chunk");
}

absl::StatusOr<std::shared_ptr<const Layer>> LayerAssembly::Finish() {
  if (!tensors_) {
    return absl::InvalidArgumentError("layer is missing, expected in the first message");
  }
  ATTENTION_RETURN_IF_ERROR(tensors_->CheckComplete());
  if (!sha256_.empty() && sha256_ != tensors_->Hash()) {
    return ReasonedError(absl::StatusCode::kInvalidArgument, ErrorReason::kHashMismatch,
                         "sha256 is not that of the bytes that arrived");
  }
  return layers_.Create(layer_, *tensors_, std::move(reservation_));
}

void LayerUpload::Listen(const UploadMethod& method) {
  auto upload = std::make_shared<LayerUpload>(method);
  upload->self_ = upload;
  upload->context_.AsyncNotifyWhenDone(&upload->done_);
  method.request_next(&upload->context_, &upload->channel_, &upload->arrived_);
}

void LayerUpload::OnArrived(bool ok) {
  if (!ok) {  // the server shuts down; a call that never began is never done either
    self_.reset();
    return;
  }
  Listen(method_);
  frame_.emplace(method_.services, method_.rpc, context_, is_cancelled_);
  assembly_.emplace(method_.services.layers, frame_->tenant());
  if (!frame_->status().ok()) {
    Finish(frame_->status());
  } else if (!method_.registry.Add(self_)) {
    BeginDrain();
  } else {
    ReadNext();
  }
  EventHandled();
}

void LayerUpload::BeginDrain() {
  {
    MutexLock lock(&mutex_);
    if (has_all_) return;
  }
  Finish(ReasonedError(absl::StatusCode::kUnavailable, ErrorReason::kDraining,
                       "the server is shutting down"));
}

void LayerUpload::ReadNext() {
  MutexLock lock(&mutex_);
  if (is_finished_) return;
  pending_events_.fetch_add(1, std::memory_order_relaxed);
  channel_.Read(&incoming_, &read_done_);
}

void LayerUpload::OnReadDone(bool ok) {
  if (ok) {
    absl::Status status;
    v1::CreateLayerRequest message;
    try {
      const grpc::Status parsed =
          grpc::SerializationTraits<v1::CreateLayerRequest>::Deserialize(&incoming_, &message);
      status = parsed.ok() ? assembly_->Add(message)
                           : absl::InvalidArgumentError("the bytes are no CreateLayerRequest");
    } catch (const std::bad_alloc&) {
      status = absl::ResourceExhaustedError("out of memory for the layer's tensors");
    }
    if (status.ok()) {
      ReadNext();
    } else {
      Finish(status);
    }
  } else {
    MutexLock lock(&mutex_);
    if (!is_finished_) {
      // Nothing tells a half-closed stream from a broken one here; but on a broken one nothing can
      // be sent, not even the initial metadata.
      pending_events_.fetch_add(1, std::memory_order_relaxed);
      has_all_ = true;
      channel_.SendInitialMetadata(&ready_);
    }
  }
  EventHandled();
}

void LayerUpload::OnReady(bool ok) {
  if (ok && !is_cancelled_->load(std::memory_order_relaxed)) {
    pending_events_.fetch_add(1, std::memory_order_relaxed);
    method_.background.Post([this] {
      Register();
      EventHandled();
    });
  } else {
    Finish(absl::CancelledError("the client has gone"));
  }
  EventHandled();
}

void LayerUpload::Register() {
  try {
    Finish(assembly_->Finish());
  } catch (const std::bad_alloc&) {
    Finish(absl::ResourceExhaustedError("out of memory for the layer's weights"));
  }
  assembly_.reset();
}

bool LayerUpload::Finish(const absl::StatusOr<std::shared_ptr<const Layer>>& layer) {
  MutexLock lock(&mutex_);
  if (is_finished_) return false;
  is_finished_ = true;
  pending_events_.fetch_add(1, std::memory_order_relaxed);
  frame_->Finish(layer.status());
  if (!layer.ok()) {
    channel_.FinishWithError(ToGrpcStatus(layer.status()), &finished_);
    return true;
  }
  v1::CreateLayerResponse response;
  EncodeLayer(**layer, response.mutable_layer());
  response_ = codec::OutgoingMessage(response).Serialize();
  channel_.Finish(response_, grpc::Status::OK, &finished_);
  return true;
}

void LayerUpload::OnDone(bool) {
  if (context_.IsCancelled()) is_cancelled_->store(true, std::memory_order_relaxed);
  EventHandled();
}

void LayerUpload::OnFinished(bool) { EventHandled(); }

void LayerUpload::EventHandled() {
  if (pending_events_.fetch_sub(1, std::memory_order_acq_rel) == 1) self_.reset();
}

}  // namespace attention::server
