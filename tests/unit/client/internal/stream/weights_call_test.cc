#include "client/internal/stream/weights_call.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <atomic>
#include <stop_token>

#include "absl/synchronization/notification.h"
#include "attention/client/errors.h"
#include "tests/unit/client/fake_server.h"

namespace attention::client {
namespace {

using ::testing::ElementsAre;
using ServerStream = grpc::ServerReaderWriter<v1::AttendStreamResponse, v1::AttendStreamRequest>;

v1::AttendStreamResponse Result(std::uint64_t id) {
  v1::AttendStreamResponse response;
  response.set_request_id(id);
  response.mutable_response()->mutable_timing()->set_batch_size(5);
  return response;
}

v1::AttendStreamResponse Block(std::uint64_t id, std::int64_t q_begin, bool is_last) {
  v1::AttendStreamResponse response;
  response.set_request_id(id);
  response.set_is_last(is_last);
  v1::WeightsBlock* block = response.mutable_weights();
  block->set_q_begin(q_begin);
  block->mutable_weights()->set_dtype(v1::DTYPE_FLOAT32);
  for (const std::int64_t dimension : {1, 1, 2}) block->mutable_weights()->add_shape(dimension);
  block->mutable_weights()->set_data(std::string(8, '\0'));
  return response;
}

class WeightsCallTest : public testing::Test {
 protected:
  WeightsCallTest() {
    ClientOptions options;
    options.retry_policy.initial_backoff = absl::Milliseconds(1);
    client_ = server_.Connect(options);
  }

  // Answers each request on a stream with `answer(id, stream)`.
  void AnswerWith(std::function<grpc::Status(std::uint64_t, ServerStream*)> answer) {
    server_.on_attend_stream = [this, answer](auto*, ServerStream* stream) {
      ++num_calls_;
      v1::AttendStreamRequest request, none;
      stream->Read(&request);
      is_asked_for_ = request.request().returns().weights();
      const bool is_half_closed = !stream->Read(&none);
      return is_half_closed ? answer(request.request_id(), stream)
                            : grpc::Status(grpc::StatusCode::INTERNAL, "not half-closed");
    };
  }

  absl::StatusOr<AttendResult> Call(const CallOptions& options = {}) {
    return client_->AttendWithWeights(
        {}, [this](WeightsBlock block) { rows_.push_back(block.q_begin); }, options);
  }

  std::atomic<int> num_calls_ = 0;
  std::atomic<bool> is_asked_for_ = false;
  std::vector<std::int64_t> rows_;
  absl::Notification release_;
  FakeServer server_;  // after what its handlers use

  std::shared_ptr<Client> client_;
};

TEST_F(WeightsCallTest, BlocksComeInOrderAndThenTheResult) {
  AnswerWith([](std::uint64_t id, ServerStream* stream) {
    stream->Write(Result(id));
    for (std::int64_t row = 0; row < 50; ++row) stream->Write(Block(id, row, row == 49));
    return grpc::Status::OK;
  });
  const auto result = Call();
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->timing.batch_size, 5);
  EXPECT_EQ(rows_.size(), 50u);
  EXPECT_TRUE(std::is_sorted(rows_.begin(), rows_.end()));
  EXPECT_TRUE(is_asked_for_);
}

TEST_F(WeightsCallTest, AFailedRequestCarriesItsReason) {
  AnswerWith([](std::uint64_t id, ServerStream* stream) {
    v1::AttendStreamResponse response;
    response.set_request_id(id);
    response.set_is_last(true);
    response.mutable_error()->set_code(grpc::StatusCode::RESOURCE_EXHAUSTED);
    response.mutable_error()->set_message("full");
    response.mutable_error()->set_reason("QUEUE_FULL");
    stream->Write(response);
    return grpc::Status::OK;
  });
  const absl::Status status = Call().status();
  EXPECT_TRUE(absl::IsResourceExhausted(status));
  EXPECT_EQ(ErrorReason(status), std::string(kQueueFull));
}

TEST_F(WeightsCallTest, AFullQueueIsRetriedWhenTheServerSaysWhen) {
  AnswerWith([this](std::uint64_t id, ServerStream* stream) {
    v1::AttendStreamResponse response = Result(id);
    response.set_is_last(true);
    if (num_calls_ == 1) {
      response.mutable_error()->set_code(grpc::StatusCode::RESOURCE_EXHAUSTED);
      response.mutable_error()->mutable_retry_delay()->set_nanos(1000);
    }
    stream->Write(response);
    return grpc::Status::OK;
  });
  EXPECT_TRUE(Call().ok());
  EXPECT_EQ(num_calls_, 2);
}

TEST_F(WeightsCallTest, AnUntimelyEndIsInternal) {
  AnswerWith([](std::uint64_t id, ServerStream* stream) {
    stream->Write(Result(id));
    stream->Write(Block(id, 0, false));
    return grpc::Status::OK;
  });
  EXPECT_TRUE(absl::IsInternal(Call().status()));
}

TEST_F(WeightsCallTest, AMalformedBlockIsInternal) {
  AnswerWith([](std::uint64_t id, ServerStream* stream) {
    v1::AttendStreamResponse response = Block(id, 0, true);
    response.mutable_weights()->mutable_weights()->add_shape(3);
    stream->Write(Result(id));
    stream->Write(response);
    return grpc::Status::OK;
  });
  EXPECT_TRUE(absl::IsInternal(Call().status()));
  EXPECT_THAT(rows_, testing::IsEmpty());
}

TEST_F(WeightsCallTest, RetriedWhileNothingHasCome) {
  AnswerWith([this](std::uint64_t id, ServerStream* stream) {
    if (num_calls_ < 3) return grpc::Status(grpc::StatusCode::UNAVAILABLE, "down");
    stream->Write(Result(id));
    stream->Write(Block(id, 0, true));
    return grpc::Status::OK;
  });
  EXPECT_TRUE(Call().ok());
  EXPECT_EQ(num_calls_, 3);
  EXPECT_THAT(rows_, ElementsAre(0));
}

TEST_F(WeightsCallTest, NotRetriedOnceABlockHasCome) {
  AnswerWith([](std::uint64_t id, ServerStream* stream) {
    stream->Write(Result(id));
    stream->Write(Block(id, 0, false));
    return grpc::Status(grpc::StatusCode::UNAVAILABLE, "down");
  });
  EXPECT_TRUE(absl::IsUnavailable(Call().status()));
  EXPECT_EQ(num_calls_, 1);
  EXPECT_THAT(rows_, ElementsAre(0));
}

TEST_F(WeightsCallTest, CancelFromTheBlocksCallback) {
  AnswerWith([this](std::uint64_t id, ServerStream* stream) {
    stream->Write(Result(id));
    stream->Write(Block(id, 0, false));
    release_.WaitForNotification();
    return grpc::Status::OK;
  });
  std::stop_source source;
  const auto result = client_->AttendWithWeights({}, [&](WeightsBlock) { source.request_stop(); },
                                                 {.cancellation = source.get_token()});
  EXPECT_TRUE(absl::IsCancelled(result.status()));
  release_.Notify();
}

TEST_F(WeightsCallTest, CallsInFlightSurviveTheClient) {
  AnswerWith([this](std::uint64_t id, ServerStream* stream) {
    release_.WaitForNotification();
    stream->Write(Result(id));
    stream->Write(Block(id, 0, true));
    return grpc::Status::OK;
  });
  Future<AttendResult> future = client_->AttendWithWeightsFuture({}, [](WeightsBlock) {});
  client_.reset();
  release_.Notify();
  EXPECT_TRUE(future.get().ok());
}

TEST_F(WeightsCallTest, RequestsBeyondTheClientsLimitAreNotSent) {
  ClientOptions options;
  options.max_message_bytes = 10;
  const std::vector<float> values(10);
  const auto result = server_.Connect(options)->AttendWithWeights({.q = TensorView(values, {10})},
                                                                  [](WeightsBlock) {});
  EXPECT_TRUE(absl::IsResourceExhausted(result.status()));
}

}  // namespace
}  // namespace attention::client
