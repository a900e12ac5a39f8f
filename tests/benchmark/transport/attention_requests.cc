#include "tests/benchmark/transport/attention_requests.h"

#include <grpcpp/client_context.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "attention/v1/attention_service.pb.h"
#include "attention/v1/session_service.grpc.pb.h"

namespace attention::bench {
namespace {

constexpr int kHeadDim = 64;
constexpr int kNumLayers = 32;
// One page: the computation stays small beside the transport.
constexpr int kMaxTokens = 16;
constexpr int kNumQHeads = 32, kNumKvHeads = 8, kStepHeadDim = 128;
constexpr std::size_t kBFloat16Bytes = 2;

void Fill(v1::Tensor* tensor, v1::DType dtype, std::initializer_list<std::int64_t> shape,
          std::size_t element_bytes) {
  tensor->set_dtype(dtype);
  std::size_t size = element_bytes;
  for (const std::int64_t dimension : shape) {
    tensor->add_shape(dimension);
    size *= static_cast<std::size_t>(dimension);
  }
  // Any bytes that are finite numbers in both types.
  tensor->mutable_data()->assign(size, '\x3c');
}

class RepeatedMessage final : public Requests {
 public:
  explicit RepeatedMessage(const google::protobuf::Message& message) {
    const grpc::Slice slice(message.SerializeAsString());
    bytes_ = grpc::ByteBuffer(&slice, 1);
  }
  // `shared` holds the tensors of the message.
  RepeatedMessage(const google::protobuf::Message& message, std::unique_ptr<SharedTensors> shared)
      : RepeatedMessage(message) {
    shared_ = std::move(shared);
  }
  grpc::ByteBuffer Next() override {
    if (shared_ != nullptr) shared_->Prepare();
    return bytes_;  // a reference
  }

 private:
  std::unique_ptr<SharedTensors> shared_;
  grpc::ByteBuffer bytes_;
};

// A StepStreamRequest that is encoded once; layer, position and id are then changed in place. Each
// of them stays within the values that take as many bytes on the wire.
class StepTemplate {
 public:
  StepTemplate(const std::vector<v1::SessionHandle>& handles, const SharedChannel* shared_channel) {
    if (shared_channel != nullptr) {
      shared_ = std::make_unique<SharedTensors>(*shared_channel, handles.size() * kStepBytesIn,
                                                handles.size() * kStepBytesOut);
    }
    v1::StepStreamRequest message;
    message.set_request_id(kMarkId);
    for (const v1::SessionHandle& handle : handles) {
      v1::SessionStep* step = message.mutable_request()->add_steps();
      *step->mutable_handle() = handle;
      step->set_layer(kMarkLayer);
      step->set_expected_position(kMarkPosition);
      Fill(step->mutable_k(), v1::DTYPE_BFLOAT16, {1, kNumKvHeads, kStepHeadDim}, kBFloat16Bytes);
      Fill(step->mutable_v(), v1::DTYPE_BFLOAT16, {1, kNumKvHeads, kStepHeadDim}, kBFloat16Bytes);
      Fill(step->mutable_q(), v1::DTYPE_BFLOAT16, {1, kNumQHeads, kStepHeadDim}, kBFloat16Bytes);
      if (shared_ == nullptr) continue;
      for (v1::Tensor* tensor : {step->mutable_k(), step->mutable_v(), step->mutable_q()}) {
        shared_->Move(tensor);
      }
      *step->mutable_output_to() = shared_->OutputPlace(kStepBytesOut);
    }
    bytes_ = message.SerializeAsString();
    // Tag and value of layer (field 2) and expected_position (field 3), as nothing else has them.
    const std::string mark = {'\x10', kMarkLayer, '\x18', kMarkPosition};
    for (std::size_t at = 0; (at = bytes_.find(mark, at)) != std::string::npos; ++at) {
      marks_.push_back(at);
    }
    if (marks_.size() != handles.size()) {
      std::fprintf(stderr, "a step request could not be encoded\n");
      std::exit(1);
    }
  }

  // The bytes stay this object's: they must not change before they are sent.
  grpc::ByteBuffer Set(std::uint32_t id, int layer, int position) {
    if (shared_ != nullptr) shared_->Prepare();
    for (int i = 0; i < kIdBytes; ++i) {
      const bool is_last = i == kIdBytes - 1;
      bytes_[static_cast<std::size_t>(1 + i)] =
          static_cast<char>(((id >> (7 * i)) & 0x7f) | (is_last ? 0 : 0x80));
    }
    for (const std::size_t at : marks_) {
      bytes_[at + 1] = static_cast<char>(layer);
      bytes_[at + 3] = static_cast<char>(position);
    }
    const grpc::Slice slice(bytes_.data(), bytes_.size(), grpc::Slice::STATIC_SLICE);
    return grpc::ByteBuffer(&slice, 1);
  }

  static constexpr std::uint32_t kFirstId = 1 << 14;  // of those that take three bytes
  static constexpr std::uint32_t kLastId = (1 << 21) - 1;

 private:
  static constexpr int kIdBytes = 3;
  static constexpr std::uint32_t kMarkId = kFirstId;
  static constexpr char kMarkLayer = 0x7d;
  static constexpr char kMarkPosition = 0x7e;

  std::unique_ptr<SharedTensors> shared_;
  std::string bytes_;
  std::vector<std::size_t> marks_;
};

class StepRequests final : public Requests {
 public:
  StepRequests(const std::shared_ptr<grpc::Channel>& channel, int batch_size, int max_in_flight,
               const SharedChannel* shared_channel)
      : stub_(v1::SessionService::NewStub(channel)),
        shared_channel_(shared_channel),
        batch_size_(batch_size),
        num_buffers_(max_in_flight + 1) {
    Renew();
  }
  ~StepRequests() override {
    Delete(old_handles_);
    Delete(handles_);
  }

  grpc::ByteBuffer Next() override {
    if (layer_ == kNumLayers) {
      layer_ = 0;
      ++position_;
    }
    if (position_ == kMaxTokens) Renew();
    StepTemplate& buffer = *buffers_[next_buffer_++ % buffers_.size()];
    const std::uint32_t id = next_id_++;
    if (next_id_ > StepTemplate::kLastId) next_id_ = StepTemplate::kFirstId;
    return buffer.Set(id, layer_++, position_);
  }

 private:
  void Renew() {
    // Requests may still be on their way: what they need goes with the next renewal.
    Delete(old_handles_);
    old_handles_ = std::move(handles_);
    handles_.clear();
    old_buffers_ = std::move(buffers_);
    buffers_.clear();
    v1::CreateSessionRequest request;
    v1::SessionGeometry* geometry = request.mutable_geometry();
    geometry->set_num_layers(kNumLayers);
    geometry->set_num_kv_heads(kNumKvHeads);
    geometry->set_head_dim_qk(kStepHeadDim);
    geometry->set_head_dim_v(kStepHeadDim);
    geometry->set_kv_dtype(v1::DTYPE_BFLOAT16);
    for (int i = 0; i < batch_size_; ++i) {
      grpc::ClientContext context;
      v1::CreateSessionResponse response;
      const grpc::Status status = stub_->CreateSession(&context, request, &response);
      if (!status.ok()) {
        std::fprintf(stderr, "CreateSession: %s\n", status.error_message().c_str());
        std::exit(1);
      }
      handles_.push_back(response.session().handle());
    }
    for (int i = 0; i < num_buffers_; ++i) {
      buffers_.push_back(std::make_unique<StepTemplate>(handles_, shared_channel_));
    }
    layer_ = position_ = 0;
  }

  void Delete(const std::vector<v1::SessionHandle>& handles) {
    for (const v1::SessionHandle& handle : handles) {
      grpc::ClientContext context;
      v1::DeleteSessionRequest request;
      *request.mutable_handle() = handle;
      v1::DeleteSessionResponse response;
      stub_->DeleteSession(&context, request, &response);
    }
  }

  const std::unique_ptr<v1::SessionService::Stub> stub_;
  const SharedChannel* const shared_channel_;
  const int batch_size_;
  const int num_buffers_;
  std::vector<v1::SessionHandle> handles_, old_handles_;
  std::vector<std::unique_ptr<StepTemplate>> buffers_, old_buffers_;
  std::size_t next_buffer_ = 0;
  std::uint32_t next_id_ = StepTemplate::kFirstId;
  int layer_ = 0;
  int position_ = 0;
};

}  // namespace

std::unique_ptr<Requests> MakeAttendRequests(std::size_t payload_bytes,
                                             const SharedChannel* shared_channel) {
  v1::AttendRequest request;
  const auto q_len = static_cast<std::int64_t>(payload_bytes / (kHeadDim * sizeof(float)));
  Fill(request.mutable_q(), v1::DTYPE_FLOAT32, {q_len, 1, kHeadDim}, sizeof(float));
  // No keys: each output row is zeros.
  Fill(request.mutable_k(), v1::DTYPE_FLOAT32, {0, 1, kHeadDim}, sizeof(float));
  Fill(request.mutable_v(), v1::DTYPE_FLOAT32, {0, 1, kHeadDim}, sizeof(float));
  if (shared_channel == nullptr) return std::make_unique<RepeatedMessage>(request);
  auto shared = std::make_unique<SharedTensors>(*shared_channel, payload_bytes, payload_bytes);
  shared->Move(request.mutable_q());
  *request.mutable_output_to() = shared->OutputPlace(payload_bytes);
  return std::make_unique<RepeatedMessage>(request, std::move(shared));
}

std::unique_ptr<Requests> MakeStepRequests(const std::shared_ptr<grpc::Channel>& channel,
                                           int batch_size, int max_in_flight,
                                           const SharedChannel* shared_channel) {
  return std::make_unique<StepRequests>(channel, batch_size, max_in_flight, shared_channel);
}

}  // namespace attention::bench
