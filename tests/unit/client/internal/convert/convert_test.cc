#include "client/internal/convert/convert.h"

#include <gmock/gmock.h>

#include "attention/client/errors.h"
#include "client/internal/call/answer.h"

namespace attention::client::internal {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

const std::vector<float> kValues = {1, 2, 3, 4};

TensorView View() { return TensorView(kValues, {1, 2, 2}); }

void Fill(v1::Tensor* tensor, std::vector<std::int64_t> shape) {
  tensor->set_dtype(v1::DTYPE_FLOAT32);
  tensor->mutable_shape()->Assign(shape.begin(), shape.end());
  tensor->set_data(kValues.data(), static_cast<std::size_t>(NumElements(shape)) * sizeof(float));
}

grpc::ByteBuffer InSlices(const std::string& bytes, std::size_t slice_bytes) {
  std::vector<grpc::Slice> slices;
  for (std::size_t begin = 0; begin < bytes.size(); begin += slice_bytes) {
    slices.emplace_back(bytes.substr(begin, slice_bytes));
  }
  return {slices.data(), slices.size()};
}

// The message as the server would get it.
template <typename Message>
absl::StatusOr<Message> Sent(absl::StatusOr<codec::OutgoingMessage> outgoing) {
  if (!outgoing.ok()) return outgoing.status();
  const grpc::ByteBuffer bytes = (*std::move(outgoing)).SerializeInOnePiece();
  Message message;
  codec::ReceivedMessage received;
  if (absl::Status status = received.Parse(bytes, &message); !status.ok()) return status;
  received.FillInData();
  return message;
}

// The result that the caller gets for an answer.
template <typename Message>
auto Received(const Message& answer) {
  return ReadAnswer<Message>(
      InSlices(answer.SerializeAsString(), 5),
      [](const auto& message, const auto& received) { return FromWire(message, received); });
}

TEST(ConvertTest, TensorGoesAndComes) {
  const auto message = Sent<v1::Tensor>(ToWire(View(), "q"));
  ASSERT_TRUE(message.ok()) << message.status();
  EXPECT_EQ(message->dtype(), v1::DTYPE_FLOAT32);
  EXPECT_THAT(message->shape(), ElementsAre(1, 2, 2));
  const auto tensor = Received(*message);
  ASSERT_TRUE(tensor.ok());
  EXPECT_THAT(tensor->floats(), ElementsAre(1, 2, 3, 4));
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(tensor->bytes().data()) % 64, 0u);
}

TEST(ConvertTest, AnAnswerThatIsNoMessageIsInternalAndNamesTheField) {
  v1::AttendResponse response;
  response.mutable_output()->set_data("12345");
  std::string bytes = response.SerializeAsString();
  bytes[3] = 9;  // more data than there is
  const auto result = ReadAnswer<v1::AttendResponse>(
      InSlices(bytes, 100),
      [](const auto& message, const auto& received) { return FromWire(message, received); });
  EXPECT_EQ(result.status(),
            absl::InternalError("the server's answer is no attention.v1.AttendResponse: "
                                "output.data is malformed: its length is 9, expected at most the 5 "
                                "bytes that are left"));
}

TEST(ConvertTest, TimingInFull) {
  v1::AttendResponse response;
  v1::Timing* timing = response.mutable_timing();
  timing->mutable_queue()->set_nanos(1);
  timing->mutable_batch_formation()->set_nanos(2);
  timing->mutable_compute()->set_nanos(3);
  timing->set_batch_size(4);
  timing->mutable_wire_in()->set_nanos(5);
  timing->mutable_wire_out()->set_seconds(6);
  timing->set_copied_bytes(std::int64_t{1} << 40);
  const auto result = Received(response);
  ASSERT_TRUE(result.ok());
  EXPECT_EQ(result->timing.queue, absl::Nanoseconds(1));
  EXPECT_EQ(result->timing.batch_formation, absl::Nanoseconds(2));
  EXPECT_EQ(result->timing.compute, absl::Nanoseconds(3));
  EXPECT_EQ(result->timing.batch_size, 4);
  EXPECT_EQ(result->timing.wire_in, absl::Nanoseconds(5));
  EXPECT_EQ(result->timing.wire_out, absl::Seconds(6));
  EXPECT_EQ(result->timing.copied_bytes, std::int64_t{1} << 40);
}

TEST(ConvertTest, EveryDTypeHasItsWord) {
  for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kBool}) {
    EXPECT_EQ(*FromProto(ToProto(dtype)), dtype);
  }
  EXPECT_TRUE(absl::IsInternal(FromProto(v1::DTYPE_UNSPECIFIED).status()));
}

TEST(ConvertTest, UnreadableTensorsAreRefusedByName) {
  const absl::Status null = ToWire(TensorView(nullptr, DType::kFloat32, {2}), "q").status();
  EXPECT_TRUE(absl::IsInvalidArgument(null));
  EXPECT_THAT(std::string(null.message()), HasSubstr("q.data"));
  const absl::Status negative = ToWire(TensorView(&null, DType::kFloat32, {-2}), "k").status();
  EXPECT_TRUE(absl::IsInvalidArgument(negative));
  EXPECT_THAT(std::string(negative.message()), HasSubstr("k.shape: [-2]"));
}

TEST(ConvertTest, AnEmptyTensorNeedsNoData) {
  const auto message =
      Sent<v1::Tensor>(ToWire(TensorView(nullptr, DType::kFloat16, {0, 2, 4}), "q"));
  ASSERT_TRUE(message.ok());
  EXPECT_EQ(message->data(), "");
  EXPECT_THAT(message->shape(), ElementsAre(0, 2, 4));
  EXPECT_EQ(Received(*message)->bytes().size(), 0u);
}

TEST(ConvertTest, AnAnswerWhoseBytesDoNotFitIsInternal) {
  v1::Tensor message;
  Fill(&message, {1, 2, 2});
  message.add_shape(2);
  EXPECT_TRUE(absl::IsInternal(Received(message).status()));
  v1::AttendResponse response;
  Fill(response.mutable_output(), {4});
  response.mutable_output()->set_dtype(v1::DTYPE_BFLOAT16);
  EXPECT_TRUE(absl::IsInternal(Received(response).status()));
}

TEST(ConvertTest, DurationsAreClampedToWhatTheWireHolds) {
  google::protobuf::Duration message;
  ToProto(absl::InfiniteDuration(), &message);
  EXPECT_EQ(message.seconds(), 315576000000);
  ToProto(-absl::InfiniteDuration(), &message);
  EXPECT_EQ(message.seconds(), -315576000000);
  ToProto(absl::Milliseconds(-1500), &message);
  EXPECT_EQ(message.seconds(), -1);
  EXPECT_EQ(message.nanos(), -500000000);
  EXPECT_EQ(FromProto(message), absl::Milliseconds(-1500));
}

TEST(ConvertTest, AttendRequestInFull) {
  AttendRequest request;
  request.q = request.k = request.v = request.bias = View();
  request.mask = TensorView("\1\0", DType::kBool, {1, 2});
  request.q_lens = {1};
  request.kv_lens = {2};
  request.first_query_positions = {3};
  request.config = {.softmax_scale = 0.5f,
                    .soft_cap = 30,
                    .is_causal = true,
                    .window_left = 7,
                    .window_right = 0,
                    .sink_tokens = 4,
                    .alibi_slopes = View(),
                    .sink_logits = View()};
  request.returns = {.lse = true, .column_sums = true};
  const auto sent = Sent<v1::AttendRequest>(ToWire(request));
  ASSERT_TRUE(sent.ok()) << sent.status();
  const v1::AttendRequest& message = *sent;
  EXPECT_TRUE(message.has_q() && message.has_k() && message.has_v() && message.has_bias());
  EXPECT_EQ(message.mask().data().size(), 2u);
  EXPECT_THAT(message.q_lens(), ElementsAre(1));
  EXPECT_THAT(message.kv_lens(), ElementsAre(2));
  EXPECT_THAT(message.first_query_positions(), ElementsAre(3));
  const v1::AttentionConfig& config = message.config();
  EXPECT_EQ(config.softmax_scale(), 0.5f);
  EXPECT_EQ(config.soft_cap(), 30);
  EXPECT_TRUE(config.is_causal());
  EXPECT_EQ(config.window_left(), 7);
  EXPECT_TRUE(config.has_window_right());
  EXPECT_EQ(config.sink_tokens(), 4);
  EXPECT_TRUE(config.has_alibi_slopes() && config.has_sink_logits());
  EXPECT_TRUE(message.returns().lse() && message.returns().column_sums());
  EXPECT_FALSE(message.returns().weights());
  EXPECT_TRUE(Sent<v1::AttendRequest>(ToWire(request, /*weights=*/true))->returns().weights());
}

TEST(ConvertTest, AbsentStaysAbsent) {
  const auto attend = Sent<v1::AttendRequest>(ToWire(AttendRequest{}));
  ASSERT_TRUE(attend.ok());
  const v1::AttendRequest& message = *attend;
  EXPECT_FALSE(message.has_q() || message.has_bias() || message.has_mask());
  EXPECT_FALSE(message.config().has_softmax_scale() || message.config().has_window_left() ||
               message.config().has_window_right() || message.config().has_alibi_slopes());
  const auto request = Sent<v1::StepRequest>(ToWire(StepRequest{.steps = {SessionStep{}}}));
  ASSERT_TRUE(request.ok());
  const v1::SessionStep& step = request->steps(0);
  EXPECT_FALSE(step.has_expected_position() || step.has_k() || step.has_kv_end() ||
               step.has_first_query_position());
}

TEST(ConvertTest, StepRequestInFullAndItsErrorsNameTheStep) {
  SessionStep step{.handle = {"w", 7, "s"}, .layer = 2, .expected_position = 0};
  step.k = step.v = step.q = step.bias = View();
  step.mask = TensorView("\1\0", DType::kBool, {1, 2});
  step.first_query_position = 0;
  step.kv_begin = 1;
  step.kv_end = 2;
  step.returns.lse = true;
  const auto message = Sent<v1::StepRequest>(ToWire(StepRequest{.steps = {step}}));
  ASSERT_TRUE(message.ok()) << message.status();
  const v1::SessionStep& sent = message->steps(0);
  EXPECT_EQ(sent.handle().server_epoch(), 7u);
  EXPECT_EQ(sent.layer(), 2);
  EXPECT_TRUE(sent.has_expected_position() && sent.has_first_query_position());
  EXPECT_TRUE(sent.has_k() && sent.has_v() && sent.has_q() && sent.has_bias() && sent.has_mask());
  EXPECT_EQ(sent.kv_begin(), 1);
  EXPECT_EQ(sent.kv_end(), 2);
  EXPECT_TRUE(sent.returns().lse());
  step.v = TensorView(nullptr, DType::kFloat32, {2});
  const absl::Status status = ToWire(StepRequest{.steps = {SessionStep{}, step}}).status();
  EXPECT_THAT(std::string(status.message()), HasSubstr("steps[1].v.data"));
}

TEST(ConvertTest, StepResponseKeepsEachStepsOutcome) {
  v1::StepResponse message;
  v1::SessionStepResult* good = message.add_results();
  Fill(good->mutable_output(), {1, 2, 2});
  Fill(good->mutable_lse(), {1, 2});
  Fill(good->mutable_column_sums(), {2, 2});
  good->set_position(9);
  good->set_is_replay(true);
  v1::StreamError* error = message.add_results()->mutable_error();
  error->set_code(9);
  error->set_reason("POSITION_MISMATCH");
  (*error->mutable_metadata())["actual_position"] = "4";
  message.mutable_timing()->set_batch_size(6);
  const auto result = Received(message);
  ASSERT_TRUE(result.ok());
  ASSERT_EQ(result->results.size(), 2u);
  EXPECT_TRUE(result->results[0].status.ok());
  EXPECT_THAT(result->results[0].output.floats(), ElementsAre(1, 2, 3, 4));
  EXPECT_THAT(result->results[0].lse.shape(), ElementsAre(1, 2));
  EXPECT_THAT(result->results[0].column_sums.shape(), ElementsAre(2, 2));
  EXPECT_EQ(result->results[0].position, 9);
  EXPECT_TRUE(result->results[0].is_replay);
  EXPECT_TRUE(absl::IsFailedPrecondition(result->results[1].status));
  EXPECT_EQ(ActualPosition(result->results[1].status), 4);
  EXPECT_EQ(result->timing.batch_size, 6);
}

TEST(ConvertTest, SessionInFull) {
  const SessionOptions options = {.geometry = {.num_layers = 3,
                                               .num_kv_heads = 2,
                                               .head_dim_qk = 64,
                                               .head_dim_v = 32,
                                               .kv_dtype = DType::kBFloat16},
                                  .ttl = absl::Seconds(90),
                                  .expected_tokens = 11};
  v1::CreateSessionRequest request;
  ToProto(options, &request);
  EXPECT_EQ(request.ttl().seconds(), 90);
  EXPECT_EQ(request.expected_tokens(), 11);

  v1::Session message;
  *message.mutable_geometry() = request.geometry();
  message.mutable_handle()->set_session_id("s");
  message.add_layer_lengths(5);
  message.set_committed_length(4);
  message.set_kv_bytes(1000);
  message.mutable_ttl()->set_seconds(90);
  message.mutable_create_time()->set_seconds(100);
  message.mutable_expire_time()->set_seconds(190);
  message.mutable_expire_time()->set_nanos(5);
  const auto info = FromProto(std::move(message));
  ASSERT_TRUE(info.ok());
  EXPECT_EQ(info->handle.session_id, "s");
  EXPECT_EQ(info->geometry.num_layers, 3);
  EXPECT_EQ(info->geometry.num_kv_heads, 2);
  EXPECT_EQ(info->geometry.head_dim_qk, 64);
  EXPECT_EQ(info->geometry.head_dim_v, 32);
  EXPECT_EQ(info->geometry.kv_dtype, DType::kBFloat16);
  EXPECT_THAT(info->layer_lengths, ElementsAre(5));
  EXPECT_EQ(info->committed_length, 4);
  EXPECT_EQ(info->kv_bytes, 1000);
  EXPECT_EQ(info->ttl, absl::Seconds(90));
  EXPECT_EQ(info->create_time, absl::FromUnixSeconds(100));
  EXPECT_EQ(info->expire_time, absl::FromUnixSeconds(190) + absl::Nanoseconds(5));
}

TEST(ConvertTest, SessionsHaveTheFormOfGeometryThatTheyWereMadeWith) {
  const SessionOptions options = {.geometry = {.layers = {{.num_kv_heads = 16,
                                                           .head_dim_qk = 256,
                                                           .head_dim_v = 256,
                                                           .kv_dtype = DType::kBFloat16,
                                                           .window_tokens = 1024,
                                                           .sink_tokens = 4},
                                                          {.num_kv_heads = 1,
                                                           .head_dim_qk = 576,
                                                           .head_dim_v = 512,
                                                           .kv_dtype = DType::kInt8,
                                                           .value_is_key_prefix = true}}}};
  v1::CreateSessionRequest request;
  ToProto(options, &request);
  EXPECT_EQ(request.geometry().num_layers() + request.geometry().num_kv_heads(), 0)
      << "nothing is said for all layers";

  v1::Session message;
  *message.mutable_geometry() = request.geometry();
  message.mutable_geometry()->set_num_layers(2);
  const auto info = FromProto(std::move(message));
  ASSERT_TRUE(info.ok()) << info.status();
  EXPECT_EQ(info->geometry.num_layers, 2);
  EXPECT_EQ(info->geometry.layers, options.geometry.layers);
  EXPECT_EQ(info->geometry.layer(0).window_tokens, 1024);
  EXPECT_TRUE(info->geometry.layer(1).value_is_key_prefix);
}

TEST(ConvertTest, AWindowMayBeSaidOnceForAllLayers) {
  v1::CreateSessionRequest request;
  ToProto({.geometry = {.num_layers = 2, .head_dim_qk = 8, .window_tokens = 64, .sink_tokens = 1}},
          &request);
  EXPECT_EQ(request.geometry().window_tokens(), 64);
  EXPECT_EQ(request.geometry().sink_tokens(), 1);
  EXPECT_TRUE(request.geometry().layers().empty());
}

TEST(ConvertTest, ServerInfoInFull) {
  v1::GetServerInfoResponse message;
  message.set_version("1.2");
  message.set_commit("abc");
  message.set_server_name("w");
  message.set_server_epoch(7);
  v1::Device* device = message.add_devices();
  device->set_backend("cpu");
  device->set_isa("AVX2");
  device->set_num_threads(4);
  device->set_is_used(true);
  message.mutable_limits()->set_max_head_dim_qk(576);
  message.mutable_limits()->set_max_head_dim_v(512);
  message.mutable_limits()->set_kv_capacity_bytes(1 << 20);
  message.mutable_capacity()->set_kv_free_bytes(1 << 19);
  const auto info = FromProto(std::move(message));
  ASSERT_TRUE(info.ok());
  EXPECT_EQ(info->version, "1.2");
  EXPECT_EQ(info->commit, "abc");
  EXPECT_EQ(info->server_name, "w");
  EXPECT_EQ(info->server_epoch, 7u);
  ASSERT_EQ(info->devices.size(), 1u);
  EXPECT_EQ(info->devices[0].isa, "AVX2");
  EXPECT_EQ(info->devices[0].num_threads, 4);
  EXPECT_TRUE(info->devices[0].is_used);
  EXPECT_EQ(info->limits.max_head_dim_qk, 576);
  EXPECT_EQ(info->limits.max_head_dim_v, 512);
  EXPECT_EQ(info->limits.kv_capacity_bytes, 1 << 20);
  EXPECT_EQ(info->capacity.kv_free_bytes, 1 << 19);
}

TEST(ConvertTest, ExplainInFull) {
  const ExplainRequest request = {.num_q_heads = 8,
                                  .num_kv_heads = 2,
                                  .head_dim_qk = 64,
                                  .head_dim_v = 32,
                                  .dtype = DType::kFloat16,
                                  .kv_dtype = DType::kBFloat16,
                                  .q_len = 3,
                                  .kv_len = 5,
                                  .first_query_position = 0,
                                  .config = {.is_causal = true}};
  const auto sent = Sent<v1::ExplainRequest>(ToWire(request));
  ASSERT_TRUE(sent.ok());
  const v1::ExplainRequest& message = *sent;
  EXPECT_EQ(message.num_q_heads(), 8);
  EXPECT_EQ(message.dtype(), v1::DTYPE_FLOAT16);
  EXPECT_EQ(message.kv_dtype(), v1::DTYPE_BFLOAT16);
  EXPECT_TRUE(message.has_first_query_position());
  EXPECT_TRUE(message.config().is_causal());
  v1::ExplainResponse response;
  response.set_is_supported(true);
  response.set_kernel("decode");
  response.set_flops(1e9);
  response.set_roofline_seconds(1e-3);
  const auto result = FromProto(std::move(response));
  ASSERT_TRUE(result.ok());
  EXPECT_TRUE(result->is_supported);
  EXPECT_EQ(result->kernel, "decode");
  EXPECT_EQ(result->flops, 1e9);
  EXPECT_EQ(result->roofline_seconds, 1e-3);
}

}  // namespace
}  // namespace attention::client::internal
