#include "server/rpc/attention_service.h"

#include <algorithm>
#include <limits>
#include <memory>
#include <new>
#include <utility>

#include "server/base/status_macros.h"
#include "server/rpc/attend_call.h"
#include "server/rpc/status_mapping.h"
#include "server/rpc/tensor_exchange.h"

namespace attention::server {
namespace {

// A request of a stream, and the next block of its weights.
struct AttendExchange : TensorExchange<v1::AttendStreamRequest, AttendCall> {
  using TensorExchange::TensorExchange;

  std::size_t sequence = 0;
  std::int64_t q_begin = 0;
};

class AttendStreamCall final : public TensorStream<AttendExchange> {
 public:
  using TensorStream::TensorStream;

 private:
  std::shared_ptr<AttendStreamCall> Self() {
    return std::static_pointer_cast<AttendStreamCall>(shared_from_this());
  }

  absl::Status Answer(const ExchangePtr& exchange, AttentionResult& result) override {
    ATTENTION_ASSIGN_OR_RETURN(codec::OutgoingMessage response, exchange->call.Complete(result));
    SendThenContinue(exchange, v1::AttendStreamResponse::kResponseFieldNumber, std::move(response));
    return absl::OkStatus();
  }

  // Sends a part of the answer, then computes the next block of weights, if they are wanted.
  void SendThenContinue(const ExchangePtr& exchange, int field_number,
                        codec::OutgoingMessage part) {
    SkipEmptySequences(*exchange);
    const bool is_last = !exchange->wire.request().returns().weights() ||
                         exchange->sequence == exchange->call.tasks().size();
    v1::AttendStreamResponse small_fields;
    small_fields.set_request_id(exchange->wire.request_id());
    small_fields.set_is_last(is_last);
    codec::OutgoingMessage response(small_fields);
    response.Add(field_number, std::move(part));
    std::function<void()> on_written;
    if (!is_last) on_written = [self = Self(), exchange] { self->ComputeBlock(exchange); };
    Send({std::move(response).Serialize(), is_last, exchange->bytes, std::move(on_written)});
  }

  static void SkipEmptySequences(Exchange& exchange) {
    const std::vector<AttentionTask>& tasks = exchange.call.tasks();
    while (exchange.sequence < tasks.size() && exchange.q_begin >= tasks[exchange.sequence].q_len) {
      ++exchange.sequence;
      exchange.q_begin = 0;
    }
  }

  // A block of weights on its way to the client.
  struct Block {
    v1::WeightsBlock header;
    ResponseTensor weights;
  };

  // Computes the next block; called when the one before has left, so at most one is ever held.
  void ComputeBlock(const ExchangePtr& exchange) {
    const AttentionTask& task = exchange->call.tasks()[exchange->sequence];
    const std::int64_t heads = task.params.num_q_heads;
    const std::int64_t row_bytes =
        std::max<std::int64_t>(1, heads * task.kv_len * static_cast<std::int64_t>(sizeof(float)));
    const std::int64_t rows = std::min(task.q_len - exchange->q_begin,
                                       std::max<std::int64_t>(1, kWeightsBlockBytes / row_bytes));
    auto block = std::make_shared<Block>();
    block->header.set_sequence(static_cast<int>(exchange->sequence));
    block->header.set_q_begin(exchange->q_begin);
    std::unique_ptr<AttentionRequest> request = frame().MakeRequest();
    const absl::Status status =
        AllocateWeights(*exchange, {rows, heads, task.kv_len}, &block->weights);
    request->weights.push_back(
        {task, exchange->q_begin, exchange->q_begin + rows, block->weights.floats()});
    services().work_model.Charge(EstimateWeights(task, rows), rows * row_bytes, 1, kSequenceCosts,
                                 request.get());
    request->is_continuation = true;
    exchange->q_begin += rows;
    request->completion = [self = Self(), exchange, block](std::unique_ptr<AttentionRequest>,
                                                           AttentionResult result) {
      self->OnBlockComputed(exchange, *block, result);
    };
    Submit(exchange, status, std::move(request));
  }

  // The size was checked, and charged for, when the request was decoded.
  absl::Status AllocateWeights(const Exchange& exchange, std::initializer_list<std::int64_t> shape,
                               ResponseTensor* weights) const {
    const auto admit = [&](std::int64_t) -> absl::StatusOr<ResultLedger::Charge> {
      return exchange.call.charge();
    };
    ResponseAllocator allocator(services().buffers, MarkOf(frame().tenant()),
                                std::numeric_limits<std::int64_t>::max(), admit);
    try {
      ATTENTION_RETURN_IF_ERROR(
          weights->Declare("weights", v1::DTYPE_FLOAT32, shape, allocator.budget()));
      ATTENTION_RETURN_IF_ERROR(allocator.Admit());
      weights->Allocate(allocator);
    } catch (const std::bad_alloc&) {
      return absl::ResourceExhaustedError("out of memory for a block of weights");
    }
    return absl::OkStatus();
  }

  void OnBlockComputed(const ExchangePtr& exchange, Block& block, const AttentionResult& result) {
    SendOrError(*exchange, [&]() -> absl::Status {
      ATTENTION_RETURN_IF_ERROR(result.status);
      codec::OutgoingMessage message(block.header);
      block.weights.MoveTo(v1::WeightsBlock::kWeightsFieldNumber, message);
      SendThenContinue(exchange, v1::AttendStreamResponse::kWeightsFieldNumber, std::move(message));
      return absl::OkStatus();
    });
  }

  grpc::ByteBuffer ErrorAnswer(const AttendExchange& exchange,
                               const absl::Status& status) override {
    v1::AttendStreamResponse response;
    response.set_request_id(exchange.wire.request_id());
    *response.mutable_error() = ToStreamError(status);
    response.set_is_last(true);
    return codec::OutgoingMessage(response).Serialize();
  }
};

}  // namespace

AttentionServiceImpl::AttentionServiceImpl(const ServiceContext& services, StreamRegistry& registry)
    : services_(services),
      attend_(ATTENTION_UNARY_METHOD(AttentionService, Attend)),
      attend_stream_{
          services, "AttentionService/AttendStream", registry,
          [this](auto* context, auto* channel, void* tag) {
            RequestAttendStream(context, channel, queue_, queue_, tag);
          },
          [](const StreamMethod& method) { return std::make_shared<AttendStreamCall>(method); }} {}

void AttentionServiceImpl::Listen(grpc::ServerCompletionQueue& queue) {
  queue_ = &queue;
  UnaryCall::Listen(attend_);
  PipelinedStream::Listen(attend_stream_);
}

void AttentionServiceImpl::Attend(UnaryCall& call) {
  ServeTensorCall<v1::AttendRequest, UnaryAttendCall>(call, services_);
}

}  // namespace attention::server
