// A CreateLayer call: reads the client's messages, then has the layer packed and registered on
// another thread, and answers.
//
// Thread-safety: gRPC's events of one call come one at a time, but for the end of the call.
#pragma once

#include <grpcpp/server_context.h>
#include <grpcpp/support/async_stream.h>

#include <atomic>
#include <functional>
#include <memory>
#include <optional>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "attention/v1/layer_service.pb.h"
#include "server/base/background_thread.h"
#include "server/layer/layer_table.h"
#include "server/rpc/completion_threads.h"
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
  BackgroundThread& background;
  // The generated Request method: asks gRPC for the next call.
  std::function<void(grpc::ServerContext*, Channel*, void* tag)> request_next;
};

class LayerUpload final : public DrainableStream {
 public:
  // Offers gRPC one more call of the method.
  static void Listen(const UploadMethod& method);

  explicit LayerUpload(const UploadMethod& method) : method_(method) {}
  LayerUpload(const LayerUpload&) = delete;
  LayerUpload& operator=(const LayerUpload&) = delete;

  // An upload that is still on its way ends with UNAVAILABLE.
  void BeginDrain() override;

 private:
  void OnArrived(bool ok);
  void OnReadDone(bool ok);
  void OnReady(bool ok);
  void OnDone(bool ok);
  void OnFinished(bool ok);

  void ReadNext();
  void Register();
  // Answers, unless the call has been answered; true if it does.
  bool Finish(const absl::StatusOr<std::shared_ptr<const Layer>>& layer);
  void EventHandled();

  const UploadMethod& method_;
  grpc::ServerContext context_;
  UploadMethod::Channel channel_{&context_};
  grpc::ByteBuffer incoming_;
  const CancelFlag is_cancelled_ = MakeCancelFlag();
  std::optional<CallFrame> frame_;
  std::optional<LayerAssembly> assembly_;
  grpc::ByteBuffer response_;
  std::atomic<int> pending_events_{2};  // arrived and done at first
  std::shared_ptr<LayerUpload> self_;   // gRPC's share

  Mutex mutex_;
  bool is_finished_ ABSL_GUARDED_BY(mutex_) = false;
  bool has_all_ ABSL_GUARDED_BY(mutex_) = false;  // registered soon: too late for a drain

  EventOf<LayerUpload, &LayerUpload::OnArrived> arrived_{this};
  EventOf<LayerUpload, &LayerUpload::OnReadDone> read_done_{this};
  EventOf<LayerUpload, &LayerUpload::OnReady> ready_{this};
  EventOf<LayerUpload, &LayerUpload::OnDone> done_{this};
  EventOf<LayerUpload, &LayerUpload::OnFinished> finished_{this};
};

}  // namespace attention::server
