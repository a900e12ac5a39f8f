#include "server/rpc/layer_upload.h"

#include <grpcpp/impl/codegen/proto_utils.h>

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "proto/codec/outgoing_message.h"
#include "server/base/at_field.h"
#include "server/base/contain_exceptions.h"
#include "server/base/error_reason.h"
#include "server/base/status_macros.h"
#include "server/rpc/status_mapping.h"
#include "server/wire/layer_decoder.h"
#include "server/wire/tensor_decoder.h"

namespace attention::server {
namespace {

// An upload that moves brings this much in upload-stall-timeout.
constexpr std::size_t kMinSpanBytes = std::size_t{64} << 10;

}  // namespace

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
  const auto upload = std::make_shared<LayerUpload>(method);
  upload->self_ = upload;
  const bool is_listening = upload->place_.Listen([&] {
    upload->context_.AsyncNotifyWhenDone(&upload->done_);
    method.request_next(&upload->context_, &upload->channel_, &upload->arrived_);
  });
  if (!is_listening) upload->self_.reset();
}

void LayerUpload::OnArrived(bool ok) {
  if (!ok) {  // the server shuts down; a call that never began is never done either
    self_.reset();
    return;
  }
  method_.services.calls_in_flight.KeepListening([this] { Listen(method_); });
  const absl::Status status = ContainExceptions([this] { return Begin(); });
  if (status.ok()) {
    ReadNext();
  } else {
    Finish(status);
  }
  EventHandled();
}

absl::Status LayerUpload::Begin() {
  frame_.emplace(method_.services, method_.rpc, CallFrame::Kind::kStream, context_, is_cancelled_);
  ATTENTION_RETURN_IF_ERROR(frame_->status());
  {
    MutexLock lock(&mutex_);
    ATTENTION_ASSIGN_OR_RETURN(slot_, method_.work.TakeSlot(frame_->tenant()));
    assembly_ = std::make_unique<LayerAssembly>(method_.services.layers, frame_->tenant());
    span_begin_ = method_.services.clock.Now();
  }
  receiving_ = method_.services.receiving.Begin(frame_->peer(), ReceivingLedger::Kind::kStream,
                                                this, method_.services.clock.Now());
  if (!method_.registry.Add(self_)) BeginDrain();
  return absl::OkStatus();
}

void LayerUpload::BeginDrain() {
  {
    MutexLock lock(&mutex_);
    if (has_all_) return;
  }
  Finish(ReasonedError(absl::StatusCode::kUnavailable, ErrorReason::kDraining,
                       "the server is shutting down"));
}

void LayerUpload::EndIfStalled(absl::Time now) {
  const absl::Duration timeout = method_.services.limits.upload_stall_timeout;
  std::size_t bytes = 0;
  {
    MutexLock lock(&mutex_);
    if (has_all_ || is_finished_ || now - span_begin_ < timeout) return;
    bytes = std::exchange(span_bytes_, 0);
    span_begin_ = now;
  }
  if (bytes >= kMinSpanBytes) return;
  Finish(absl::DeadlineExceededError(
      absl::StrCat("the upload has brought ", bytes, " bytes in upload-stall-timeout (",
                   absl::FormatDuration(timeout), "), expected ", kMinSpanBytes, " or its end")));
}

void LayerUpload::ReadNext() {
  MutexLock lock(&mutex_);
  if (is_finished_) return;
  pending_events_.fetch_add(1, std::memory_order_relaxed);
  channel_.Read(&incoming_, &read_done_);
}

void LayerUpload::OnReadDone(bool ok) {
  if (ok) {
    const ServiceContext& services = method_.services;
    services.receiving.Came(*receiving_, incoming_.Length(), services.clock.Now());
  }
  if (!ok) {
    HaveAll();
  } else if (const absl::Status status = ContainExceptions([this] { return Take(); });
             status.ok()) {
    ReadNext();
  } else {
    Finish(status);
  }
  EventHandled();
}

absl::Status LayerUpload::Take() {
  const std::size_t bytes = incoming_.Length();
  v1::CreateLayerRequest message;
  const grpc::Status parsed =
      grpc::SerializationTraits<v1::CreateLayerRequest>::Deserialize(&incoming_, &message);
  if (!parsed.ok()) return absl::InvalidArgumentError("the bytes are no CreateLayerRequest");
  MutexLock lock(&mutex_);
  if (is_finished_) return absl::OkStatus();
  span_bytes_ += bytes;
  return assembly_->Add(message);
}

void LayerUpload::HaveAll() {
  MutexLock lock(&mutex_);
  if (is_finished_) return;
  // Nothing tells a half-closed stream from a broken one here; but on a broken one nothing can be
  // sent, not even the initial metadata.
  pending_events_.fetch_add(1, std::memory_order_relaxed);
  has_all_ = true;
  channel_.SendInitialMetadata(&ready_);
}

void LayerUpload::OnReady(bool ok) {
  if (ok && !is_cancelled_->load(std::memory_order_relaxed)) {
    pending_events_.fetch_add(1, std::memory_order_relaxed);
    const absl::Status posted = ContainExceptions([this] {
      method_.work.Post([this] {
        Finish(ContainExceptions([this] { return Register(); }));
        EventHandled();
      });
      return absl::OkStatus();
    });
    if (!posted.ok()) {
      Finish(posted);
      EventHandled();
    }
  } else {
    Finish(absl::CancelledError("the client has gone"));
  }
  EventHandled();
}

absl::StatusOr<grpc::ByteBuffer> LayerUpload::Register() {
  ATTENTION_RETURN_IF_ERROR(method_.work.CheckGoing());
  if (is_cancelled_->load(std::memory_order_relaxed)) {
    return absl::CancelledError("the client has gone");
  }
  std::unique_ptr<LayerAssembly> assembly;
  {
    MutexLock lock(&mutex_);
    assembly.swap(assembly_);
  }
  ATTENTION_ASSIGN_OR_RETURN(const std::shared_ptr<const Layer> layer, assembly->Finish());
  v1::CreateLayerResponse response;
  EncodeLayer(*layer, response.mutable_layer());
  return codec::OutgoingMessage(response).Serialize();
}

void LayerUpload::Finish(const absl::StatusOr<grpc::ByteBuffer>& response) {
  // Given up before the client can know of the end, so that it finds room for the next; destroyed
  // without the lock.
  LayerWork::Slot slot;
  std::unique_ptr<LayerAssembly> assembly;
  {
    MutexLock lock(&mutex_);
    if (is_finished_) return;
    is_finished_ = true;
    pending_events_.fetch_add(1, std::memory_order_relaxed);
    std::swap(slot, slot_);
    assembly.swap(assembly_);
  }
  slot = {};
  assembly.reset();
  if (frame_) frame_->Finish(response.status());
  if (response.ok()) {
    channel_.Finish(*response, grpc::Status::OK, &finished_);
  } else {
    channel_.FinishWithError(ToGrpcStatus(response.status()), &finished_);
  }
}

void LayerUpload::OnDone(bool) {
  if (context_.IsCancelled()) is_cancelled_->store(true, std::memory_order_relaxed);
  EventHandled();
}

void LayerUpload::OnFinished(bool) { EventHandled(); }

void LayerUpload::EventHandled() {
  if (pending_events_.fetch_sub(1, std::memory_order_acq_rel) > 1) return;
  if (receiving_) method_.services.receiving.Leave(*receiving_, 0);
  self_.reset();
}

}  // namespace attention::server
