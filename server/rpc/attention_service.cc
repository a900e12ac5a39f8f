#include "server/rpc/attention_service.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "server/rpc/attend_decoder.h"
#include "server/rpc/pipelined_stream.h"
#include "server/rpc/timing_encoder.h"
#include "server/rpc/unary_call.h"

namespace attention::server {
namespace {

// Blocks of weights are about this large: big enough that a message's fixed cost (some 50 us)
// vanishes beside its transfer (some 700 us), small enough that a slow reader holds little.
constexpr std::int64_t kWeightsBlockBytes = std::int64_t{1} << 20;

// Decodes into a request whose work is counted; the messages must outlive it.
absl::Status FillRequest(const v1::AttendRequest& wire, const AttendLimits& limits,
                         v1::AttendResponse* response, AttentionRequest* request,
                         DecodedAttend* decoded) {
  auto result = DecodeAttend(wire, limits, response);
  if (!result.ok()) return std::move(result).status();
  *decoded = *std::move(result);
  request->tasks = decoded->tasks;
  request->flops = decoded->flops;
  request->bytes = static_cast<std::int64_t>(wire.ByteSizeLong() + response->ByteSizeLong());
  return absl::OkStatus();
}

void CountWork(const ServiceContext& services, const v1::AttendRequest& wire,
               const v1::AttendResponse& response) {
  services.metrics.query_rows.Add(
      wire.q().shape_size() == 3 ? wire.q().shape(0) : wire.q().shape(0) * wire.q().shape(1));
  services.metrics.input_bytes.Add(static_cast<std::int64_t>(
      wire.q().data().size() + wire.k().data().size() + wire.v().data().size()));
  services.metrics.output_bytes.Add(static_cast<std::int64_t>(response.output().data().size()));
}

using AttendStreamBase = PipelinedStream<v1::AttendStreamRequest, v1::AttendStreamResponse>;

class AttendStreamReactor final : public AttendStreamBase {
 public:
  using AttendStreamBase::AttendStreamBase;

 private:
  // One request of the stream, from arrival to its last answer.
  struct Exchange {
    std::unique_ptr<v1::AttendStreamRequest> request;
    std::unique_ptr<v1::AttendStreamResponse> response;
    DecodedAttend decoded;
    // The next block of weights.
    std::size_t sequence = 0;
    std::int64_t q_begin = 0;
  };
  using ExchangePtr = std::shared_ptr<Exchange>;

  std::shared_ptr<AttendStreamReactor> Self() {
    return std::static_pointer_cast<AttendStreamReactor>(shared_from_this());
  }

  void OnRequest(std::unique_ptr<v1::AttendStreamRequest> wire) override {
    auto exchange = std::make_shared<Exchange>();
    exchange->request = std::move(wire);
    exchange->response = MakeResponse(*exchange);
    std::unique_ptr<AttentionRequest> request = frame().MakeRequest();
    const AttendLimits limits{services().limits.max_message_bytes, /*allows_weights=*/true};
    const absl::Status status =
        FillRequest(exchange->request->request(), limits, exchange->response->mutable_response(),
                    request.get(), &exchange->decoded);
    request->completion = [self = Self(), exchange](std::unique_ptr<AttentionRequest>,
                                                    AttentionResult result) {
      self->OnComputed(exchange, result);
    };
    Submit(exchange, status, std::move(request));
  }

  void Submit(const ExchangePtr& exchange, absl::Status status,
              std::unique_ptr<AttentionRequest> request) {
    if (status.ok()) status = services().scheduler.Submit(request);
    if (!status.ok()) SendError(*exchange, status);
  }

  void OnComputed(const ExchangePtr& exchange, const AttentionResult& result) {
    if (!result.status.ok()) {
      SendError(*exchange, result.status);
      return;
    }
    v1::AttendResponse* response = exchange->response->mutable_response();
    EncodeTiming(result.timing, response->mutable_timing());
    CountWork(services(), exchange->request->request(), *response);
    if (!exchange->request->request().returns().weights()) {
      Release(*exchange);
      exchange->response->set_is_last(true);
      Send(std::move(exchange->response), /*is_last=*/true);
      return;
    }
    if (exchange->request->request().returns().lse()) KeepLse(*exchange);
    SendThenContinue(exchange, std::move(exchange->response));
  }

  // The response leaves, but the second pass still needs its lse.
  static void KeepLse(Exchange& exchange) {
    const std::string& lse = exchange.response->response().lse().data();
    std::vector<float>& copy = exchange.decoded.lse_for_weights;
    copy.resize(lse.size() / sizeof(float));
    std::copy_n(lse.data(), lse.size(), reinterpret_cast<char*>(copy.data()));
    float* next = copy.data();
    const auto* base = reinterpret_cast<const float*>(lse.data());
    for (AttentionTask& task : exchange.decoded.tasks) task.lse = next + (task.lse - base);
  }

  // The inputs are not needed once the last answer is on its way.
  static void Release(Exchange& exchange) { exchange.request->clear_request(); }

  void SendThenContinue(const ExchangePtr& exchange,
                        std::unique_ptr<v1::AttendStreamResponse> response) {
    SkipEmptySequences(*exchange);
    const bool is_last = exchange->sequence == exchange->decoded.tasks.size();
    response->set_is_last(is_last);
    if (is_last) {
      Send(std::move(response), /*is_last=*/true);
      return;
    }
    Send(std::move(response), /*is_last=*/false,
         [self = Self(), exchange] { self->ComputeBlock(exchange); });
  }

  static void SkipEmptySequences(Exchange& exchange) {
    const std::vector<AttentionTask>& tasks = exchange.decoded.tasks;
    while (exchange.sequence < tasks.size() && exchange.q_begin >= tasks[exchange.sequence].q_len) {
      ++exchange.sequence;
      exchange.q_begin = 0;
    }
  }

  // Computes the next block; called when the one before has left, so at most one is ever held.
  void ComputeBlock(const ExchangePtr& exchange) {
    const AttentionTask& task = exchange->decoded.tasks[exchange->sequence];
    const std::int64_t heads = task.params.num_q_heads;
    const std::int64_t row_bytes =
        std::max<std::int64_t>(1, heads * task.kv_len * static_cast<std::int64_t>(sizeof(float)));
    const std::int64_t rows = std::min(task.q_len - exchange->q_begin,
                                       std::max<std::int64_t>(1, kWeightsBlockBytes / row_bytes));
    std::shared_ptr<v1::AttendStreamResponse> response = MakeResponse(*exchange);
    v1::WeightsBlock* block = response->mutable_weights();
    block->set_sequence(static_cast<int>(exchange->sequence));
    block->set_q_begin(exchange->q_begin);
    v1::Tensor* weights = block->mutable_weights();
    weights->set_dtype(v1::DTYPE_FLOAT32);
    for (const std::int64_t dimension : {rows, heads, task.kv_len}) weights->add_shape(dimension);
    weights->mutable_data()->resize(static_cast<std::size_t>(rows * heads * task.kv_len * 4));

    std::unique_ptr<AttentionRequest> request = frame().MakeRequest();
    request->weights.push_back({task, exchange->q_begin, exchange->q_begin + rows,
                                reinterpret_cast<float*>(weights->mutable_data()->data())});
    request->flops =
        2.0 * static_cast<double>(rows * heads * task.kv_len) * task.params.head_dim_qk;
    request->bytes = rows * row_bytes;
    request->is_continuation = true;
    exchange->q_begin += rows;
    request->completion = [self = Self(), exchange, response](std::unique_ptr<AttentionRequest>,
                                                              AttentionResult result) {
      self->OnBlockComputed(exchange, *response, result);
    };
    Submit(exchange, absl::OkStatus(), std::move(request));
  }

  void OnBlockComputed(const ExchangePtr& exchange, v1::AttendStreamResponse& response,
                       const AttentionResult& result) {
    if (!result.status.ok()) {
      SendError(*exchange, result.status);
      return;
    }
    auto owned = std::make_unique<v1::AttendStreamResponse>();
    owned->Swap(&response);
    SendThenContinue(exchange, std::move(owned));
  }

  std::unique_ptr<v1::AttendStreamResponse> MakeResponse(const Exchange& exchange) const {
    auto response = std::make_unique<v1::AttendStreamResponse>();
    response->set_request_id(exchange.request->request_id());
    return response;
  }

  void SendError(const Exchange& exchange, const absl::Status& status) {
    std::unique_ptr<v1::AttendStreamResponse> response = MakeResponse(exchange);
    *response->mutable_error() = ToStreamError(status);
    response->set_is_last(true);
    Send(std::move(response), /*is_last=*/true);
  }
};

}  // namespace

grpc::ServerUnaryReactor* AttentionServiceImpl::Attend(grpc::CallbackServerContext* context,
                                                       const v1::AttendRequest* wire,
                                                       v1::AttendResponse* response) {
  auto* call = new UnaryCall(services_, "AttentionService/Attend", *context);
  std::unique_ptr<AttentionRequest> request = call->frame().MakeRequest();
  request->completion = [this, call, wire, response](std::unique_ptr<AttentionRequest>,
                                                     AttentionResult result) {
    if (result.status.ok()) {
      EncodeTiming(result.timing, response->mutable_timing());
      CountWork(services_, *wire, *response);
    }
    call->Finish(result.status);
  };
  absl::Status status = call->frame().status();
  DecodedAttend decoded;
  if (status.ok()) {
    const AttendLimits limits{services_.limits.max_message_bytes, /*allows_weights=*/false};
    status = FillRequest(*wire, limits, response, request.get(), &decoded);
  }
  if (status.ok()) status = services_.scheduler.Submit(request);
  if (!status.ok()) call->Finish(status);
  return call;
}

grpc::ServerBidiReactor<v1::AttendStreamRequest, v1::AttendStreamResponse>*
AttentionServiceImpl::AttendStream(grpc::CallbackServerContext* context) {
  auto stream =
      std::make_shared<AttendStreamReactor>(services_, "AttentionService/AttendStream", *context);
  stream->Start(registry_);
  return stream.get();
}

}  // namespace attention::server
