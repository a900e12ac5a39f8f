// A CreateLayer call: reads the client's messages, then has the layer packed and registered on
// another thread, and answers.
//
// Thread-safety: gRPC's events of one call come one at a time, but for the end of the call; a drain
// and the clock may end it on any thread.
#pragma once

#include <grpcpp/server_context.h>
#include <grpcpp/support/async_stream.h>

#include <atomic>
#include <cstddef>
#include <functional>
#include <memory>
#include <optional>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "attention/v1/layer_service.pb.h"
#include "server/base/mutex.h"
#include "server/layer/layer_table.h"
#include "server/rpc/calls_in_flight.h"
#include "server/rpc/completion_threads.h"
#include "server/rpc/layer_work.h"
#include "server/rpc/service_context.h"
#include "server/rpc/stream_registry.h"

namespace attention::server {

// The messages of an upload, put together. No gRPC.
class LayerAssembly {
 public:
  LayerAssembly(LayerTable& layers, std::string tenant)
      : layers_(layers), tenant_(std::move(tenant)) {}

  absl::Status Add(const v1::CreateLayerRequest& message);
  // Everything has arrived. The errors of CreateLayer.
  absl::StatusOr<std::shared_ptr<const Layer>> Finish();

 private:
  absl::Status Begin(const v1::NewLayer& wire);
  absl::Status BeginTensor(const v1::LayerTensor& wire);

  LayerTable& layers_;
  const std::string tenant_;
  LayerTable::NewLayer layer_;
  std::string sha256_;  // expected; may be empty
  LayerTable::Reservation reservation_;
  std::optional<LayerTensors> tensors_;  // set when the first message has come
};

// Outlives its calls.
struct UploadMethod {
  using Channel = grpc::ServerAsyncReader<grpc::ByteBuffer, grpc::ByteBuffer>;

  const ServiceContext& services;
  const char* rpc;  // for logs
  StreamRegistry& registry;
  LayerWork& work;
  // The generated Request method: asks gRPC for the next call.
  std::function<void(grpc::ServerContext*, Channel*, void* tag)> request_next;
};

class LayerUpload final : public DrainableStream, private Receiver {
 public:
  // Offers gRPC one more call of the method, unless no more are waited for.
  static void Listen(const UploadMethod& method);

  explicit LayerUpload(const UploadMethod& method)
      : place_(method.services.calls_in_flight), method_(method) {}
  LayerUpload(const LayerUpload&) = delete;
  LayerUpload& operator=(const LayerUpload&) = delete;

  // An upload that is still on its way ends with UNAVAILABLE.
  void BeginDrain() override;
  // One that has brought hardly anything for upload-stall-timeout, with DEADLINE_EXCEEDED: it holds
  // room that others could use.
  void EndIfStalled(absl::Time now) override;

 private:
  // Never: EndIfStalled watches uploads.
  absl::Time WaitsSince() const override { return absl::InfiniteFuture(); }
  void EndReceiving(const absl::Status& status) override { Finish(status); }

  absl::Status Begin();
  void OnArrived(bool ok);
  void OnReadDone(bool ok);
  void OnReady(bool ok);
  void OnDone(bool ok);
  void OnFinished(bool ok);

  void ReadNext();
  // Adds the message that has come.
  absl::Status Take();
  // Everything has come, or the client has gone.
  void HaveAll();
  absl::StatusOr<grpc::ByteBuffer> Register();
  // Answers, unless the call has been answered, and lets go of what the upload holds.
  void Finish(const absl::StatusOr<grpc::ByteBuffer>& response);
  void EventHandled();

  CallsInFlight::Place place_;
  const UploadMethod& method_;
  grpc::ServerContext context_;
  UploadMethod::Channel channel_{&context_};
  grpc::ByteBuffer incoming_;
  const CancelFlag is_cancelled_ = MakeCancelFlag();
  std::optional<CallFrame> frame_;
  std::optional<ReceivingLedger::Place> receiving_;  // from Begin until the last event
  std::atomic<int> pending_events_{2};               // arrived and done at first
  std::shared_ptr<LayerUpload> self_;                // gRPC's share

  Mutex mutex_;
  LayerWork::Slot slot_ ABSL_GUARDED_BY(mutex_);
  std::unique_ptr<LayerAssembly> assembly_ ABSL_GUARDED_BY(mutex_);
  bool is_finished_ ABSL_GUARDED_BY(mutex_) = false;
  bool has_all_ ABSL_GUARDED_BY(mutex_) = false;  // registered soon: too late for a drain
  // The bytes that have come since span_begin_; the span begins anew whenever they were enough.
  absl::Time span_begin_ ABSL_GUARDED_BY(mutex_);
  std::size_t span_bytes_ ABSL_GUARDED_BY(mutex_) = 0;

  EventOf<LayerUpload, &LayerUpload::OnArrived> arrived_{this};
  EventOf<LayerUpload, &LayerUpload::OnReadDone> read_done_{this};
  EventOf<LayerUpload, &LayerUpload::OnReady> ready_{this};
  EventOf<LayerUpload, &LayerUpload::OnDone> done_{this};
  EventOf<LayerUpload, &LayerUpload::OnFinished> finished_{this};
};

}  // namespace attention::server
