// AttendStream: many requests on one stream, answered each in its own time.
#include <map>
#include <thread>

#include "absl/synchronization/mutex.h"
#include "tests/support/service_fixture.h"

namespace attention::testing {
namespace {

using Stream = grpc::ClientReaderWriter<v1::AttendStreamRequest, v1::AttendStreamResponse>;

// An open stream whose requests are remembered, so that each answer can be checked. One thread may
// send while another reads.
class StreamClient {
 public:
  explicit StreamClient(TestServer& server)
      : context_(NewContext()), stream_(server.attention().AttendStream(context_.get())) {}

  void Send(std::uint64_t id, const v1::AttendRequest& request) {
    {
      absl::MutexLock lock(&mutex_);
      requests_[id] = request;
    }
    v1::AttendStreamRequest wire;
    wire.set_request_id(id);
    *wire.mutable_request() = request;
    EXPECT_TRUE(stream_->Write(wire));
  }

  // The next message; fails the test when the stream ends instead.
  v1::AttendStreamResponse Read() {
    v1::AttendStreamResponse answer;
    EXPECT_TRUE(stream_->Read(&answer)) << "the stream ended early";
    return answer;
  }

  // The next message, which must be the right and only answer of an open request; returns its id.
  std::uint64_t ReadRightAnswer() {
    const v1::AttendStreamResponse answer = Read();
    EXPECT_TRUE(answer.has_response()) << answer.error().message();
    EXPECT_TRUE(answer.is_last());
    absl::MutexLock lock(&mutex_);
    const auto request = requests_.extract(answer.request_id());
    EXPECT_FALSE(request.empty()) << "no request waits with id " << answer.request_id();
    if (!request.empty()) {
      EXPECT_EQ(FindMismatch(request.mapped(), answer.response()), "");
    }
    return answer.request_id();
  }

  void HalfClose() { EXPECT_TRUE(stream_->WritesDone()); }

  // After the last answer: no message is left, and the status is OK.
  void ExpectEnd() {
    v1::AttendStreamResponse answer;
    EXPECT_FALSE(stream_->Read(&answer)) << answer.ShortDebugString().substr(0, 200);
    const grpc::Status status = stream_->Finish();
    EXPECT_TRUE(status.ok()) << status.error_message();
  }

 private:
  std::unique_ptr<grpc::ClientContext> context_;
  std::unique_ptr<Stream> stream_;
  absl::Mutex mutex_;
  std::map<std::uint64_t, v1::AttendRequest> requests_;
};

// All that comes back for one request for weights: the response and each sequence's rows.
struct WeightsAnswer {
  v1::AttendResponse response;
  std::map<int, v1::Tensor> weights;
  int num_blocks = 0;
};

WeightsAnswer ReadWeights(StreamClient& client) {
  WeightsAnswer answer;
  v1::AttendStreamResponse message = client.Read();
  EXPECT_TRUE(message.has_response()) << message.error().message();
  answer.response = message.response();
  std::pair<int, std::int64_t> next = {0, 0};  // blocks come in order of sequence and row
  while (!message.is_last()) {
    message = client.Read();
    if (!message.has_weights()) {
      ADD_FAILURE() << message.ShortDebugString().substr(0, 200);
      break;
    }
    const v1::WeightsBlock& block = message.weights();
    const std::pair<int, std::int64_t> at = {block.sequence(), block.q_begin()};
    EXPECT_GE(at, next);
    next = {at.first, at.second + block.weights().shape(0)};
    v1::Tensor& rows = answer.weights[block.sequence()];
    EXPECT_EQ(block.q_begin(), rows.shape().empty() ? 0 : rows.shape(0));
    AppendRows(block.weights(), &rows);
    ++answer.num_blocks;
  }
  return answer;
}

v1::AttendRequest BadRequest() {
  v1::AttendRequest request = MakeAttendRequest({});
  request.mutable_k()->set_shape(2, 31);
  return request;
}

class AttendStreamTest : public ServiceFixture {};

TEST_F(AttendStreamTest, EachAnswerCarriesTheIdOfItsRequest) {
  StreamClient client(shared_server());
  constexpr int kRequests = 40;
  for (int i = 0; i < kRequests; ++i) {
    client.Send(0xfeed'0000'0000'0000u + 7u * static_cast<unsigned>(i),
                MakeAttendRequest({.q_lens = {1 + i % 9},
                                   .kv_lens = {1 + 5 * i},
                                   .seed = 100u + static_cast<unsigned>(i)}));
  }
  client.HalfClose();
  for (int i = 0; i < kRequests; ++i) client.ReadRightAnswer();
  client.ExpectEnd();
}

TEST_F(AttendStreamTest, AnErroneousRequestLeavesTheOthersAlone) {
  StreamClient client(shared_server());
  client.Send(1, MakeAttendRequest({.seed = 1}));
  EXPECT_EQ(client.ReadRightAnswer(), 1u);
  client.Send(2, BadRequest());
  const v1::AttendStreamResponse refused = client.Read();
  EXPECT_EQ(refused.request_id(), 2u);
  EXPECT_TRUE(refused.is_last());
  EXPECT_THAT(refused.error(), FailsWith(grpc::INVALID_ARGUMENT, "k.data has"));
  client.Send(3, MakeAttendRequest({.seed = 3}));
  EXPECT_EQ(client.ReadRightAnswer(), 3u);
  client.HalfClose();
  client.ExpectEnd();
}

TEST_F(AttendStreamTest, AnAnswerDoesNotWaitForASlowerRequestBeforeIt) {
  TestServer slow(SlowBackend());
  StreamClient client(slow);
  client.Send(1, MakeAttendRequest({.q_lens = {64}, .kv_lens = {1024}}));
  client.Send(2, BadRequest());
  EXPECT_EQ(client.Read().request_id(), 2u);
  client.HalfClose();
  EXPECT_EQ(client.ReadRightAnswer(), 1u);
  client.ExpectEnd();
}

TEST_F(AttendStreamTest, HalfCloseWithoutARequestEndsWithOk) {
  StreamClient client(shared_server());
  client.HalfClose();
  client.ExpectEnd();
}

TEST_F(AttendStreamTest, WeightsComeInBlocksOfRowsAndSumToOne) {
  StreamClient client(shared_server());
  // 4 heads of 700 keys make rows of 11200 bytes: 93 in a block of a MiB.
  v1::AttendRequest request =
      MakeAttendRequest({.head_dim_qk = 8, .head_dim_v = 8, .q_lens = {250}, .kv_lens = {700}});
  request.mutable_config()->set_is_causal(true);
  request.mutable_returns()->set_weights(true);
  client.Send(1, request);
  client.HalfClose();
  const WeightsAnswer answer = ReadWeights(client);
  client.ExpectEnd();
  EXPECT_EQ(FindMismatch(request, answer.response), "");
  EXPECT_GT(answer.num_blocks, 2);
  EXPECT_EQ(FindWeightsMismatch(request, 0, answer.weights.at(0)), "");
}

TEST_F(AttendStreamTest, WeightsOfEachSequenceOfARequest) {
  for (const bool with_lse : {true, false}) {
    SCOPED_TRACE(with_lse);
    StreamClient client(shared_server());
    v1::AttendRequest request = MakeAttendRequest(
        {.dtype = v1::DTYPE_BFLOAT16, .q_lens = {5, 0, 20, 3}, .kv_lens = {9, 4, 15, 0}});
    *request.mutable_mask() = RandomMask({4, 4, 20, 15}, 2);
    request.mutable_returns()->set_weights(true);
    request.mutable_returns()->set_lse(with_lse);
    client.Send(1, request);
    client.HalfClose();
    const WeightsAnswer answer = ReadWeights(client);
    client.ExpectEnd();
    EXPECT_EQ(FindMismatch(request, answer.response), "");
    EXPECT_EQ(answer.weights.count(1), 0u);
    for (const int sequence : {0, 2, 3}) {
      EXPECT_EQ(FindWeightsMismatch(request, sequence, answer.weights.at(sequence)), "")
          << "sequence " << sequence;
    }
  }
}

TEST_F(AttendStreamTest, LearnedSinksTakeTheirShareOfEachRowOfWeights) {
  StreamClient client(shared_server());
  v1::AttendRequest request = MakeAttendRequest({});
  *request.mutable_config()->mutable_sink_logits() = RandomTensor(v1::DTYPE_FLOAT32, {4}, 5);
  request.mutable_returns()->set_weights(true);
  client.Send(1, request);
  client.HalfClose();
  const WeightsAnswer answer = ReadWeights(client);
  client.ExpectEnd();
  EXPECT_EQ(FindWeightsMismatch(request, 0, answer.weights.at(0)), "");
}

TEST_F(AttendStreamTest, AReaderThatIsSlowGetsEverything) {
  TestServer own([](server::ServerConfig& config) { config.max_stream_requests = 4; });
  StreamClient client(own);
  constexpr int kRequests = 40;
  // Each answer has 256 KiB: all of them are far more than the transport holds.
  std::thread writer([&] {
    for (int i = 0; i < kRequests; ++i) {
      client.Send(static_cast<std::uint64_t>(i),
                  MakeAttendRequest({.head_dim_qk = 1,
                                     .head_dim_v = 128,
                                     .q_lens = {128},
                                     .kv_lens = {2},
                                     .seed = static_cast<unsigned>(i)}));
    }
    client.HalfClose();
  });
  // The first read only begins when the server has filled what it may.
  EXPECT_TRUE(WaitUntil([&] { return own.Metric("attention_batch_requests_sum") >= 4; }));
  for (int i = 0; i < kRequests; ++i) client.ReadRightAnswer();
  writer.join();
  client.ExpectEnd();
}

TEST_F(AttendStreamTest, UnreadAnswersHoldTheServerBack) {
  TestServer own([](server::ServerConfig& config) { config.max_stream_requests = 4; });
  StreamClient client(own);
  v1::AttendRequest request =
      MakeAttendRequest({.head_dim_qk = 1, .head_dim_v = 256, .q_lens = {4096}, .kv_lens = {1}});
  constexpr int kRequests = 24;  // 16 MiB each
  std::thread writer([&] {
    for (int i = 0; i < kRequests; ++i) client.Send(static_cast<std::uint64_t>(i), request);
    client.HalfClose();
  });
  const auto computed = [&] { return own.Metric("attention_batch_requests_sum"); };
  EXPECT_TRUE(WaitUntil([&] { return computed() >= 4; }));
  EXPECT_FALSE(WaitUntil([&] { return computed() > 8; }, absl::Milliseconds(300)));
  for (int i = 0; i < kRequests; ++i) EXPECT_TRUE(client.Read().has_response());
  writer.join();
  client.ExpectEnd();
}

TEST_F(AttendStreamTest, TheSdkCollectsWeightsToo) {
  const v1::AttendRequest wire = MakeAttendRequest({});
  const auto view = [](const v1::Tensor& tensor) {
    return client::TensorView(tensor.data().data(), client::DType::kFloat32, ShapeOf(tensor));
  };
  client::AttendRequest request;
  request.q = view(wire.q());
  request.k = view(wire.k());
  request.v = view(wire.v());
  v1::Tensor weights;
  const auto result = shared_server().NewClient()->AttendWithWeights(
      request, [&](const client::WeightsBlock& block) {
        AppendRows(MakeTensor(v1::DTYPE_FLOAT32, block.weights.shape(), block.weights.floats()),
                   &weights);
      });
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(FindWeightsMismatch(wire, 0, weights), "");
}

TEST_F(AttendStreamTest, AnAnswerHoldsTheWeightsOfEachSequence) {
  v1::AttendRequest request = MakeAttendRequest({.q_lens = {5, 300, 0}, .kv_lens = {9, 300, 4}});
  request.mutable_config()->set_is_causal(true);
  request.mutable_returns()->set_weights(true);
  const v1::AttendResponse response = MustAttend(shared_server(), request);
  ASSERT_EQ(response.weights_size(), 3);
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(response.weights(i).sequence(), i);
    EXPECT_EQ(FindWeightsMismatch(request, i, response.weights(i).weights()), "");
  }
}

}  // namespace
}  // namespace attention::testing
