// The results of sessions: prompts whole and in pieces, layers, ranges, replays.
#include "attention/client/merge.h"
#include "tests/support/session_driver.h"

namespace attention::testing {
namespace {

constexpr int kFailedPrecondition = grpc::FAILED_PRECONDITION;

class SessionTest : public ServiceFixture {};

void ExpectMismatch(const v1::SessionStepResult& result, const std::string& actual_position) {
  EXPECT_THAT(result.error(), FailsBecause(kFailedPrecondition, "POSITION_MISMATCH"));
  EXPECT_EQ(result.error().metadata().at("actual_position"), actual_position);
}

struct PromptCase {
  const char* name;
  v1::DType dtype;
  std::function<void(v1::AttendRequest&)> configure = [](auto&) {};
};

class PromptTest : public ServiceFixture, public ::testing::WithParamInterface<PromptCase> {};

TEST_P(PromptTest, WholeInChunksAndTokenByTokenAgreeBitwise) {
  constexpr std::int64_t kLength = 150;
  v1::AttendRequest prompt = MakePrompt(kLength, GetParam().dtype);
  GetParam().configure(prompt);
  const SessionSpec spec{.kv_dtype = GetParam().dtype};
  const auto feed = [&](std::int64_t chunk) {
    return Feed(shared_server(), prompt, MustCreate(shared_server(), spec).handle(), chunk);
  };
  const v1::AttendResponse whole = feed(kLength);
  EXPECT_EQ(FindMismatch(prompt, whole), "");
  for (const std::int64_t chunk : {64, 47, 7, 1}) {
    EXPECT_TRUE(SameAnswer(feed(chunk), whole)) << "chunks of " << chunk;
  }
}

INSTANTIATE_TEST_SUITE_P(Prompts, PromptTest,
                         ::testing::Values(PromptCase{"Float32", v1::DTYPE_FLOAT32},
                                           PromptCase{"Float16", v1::DTYPE_FLOAT16},
                                           PromptCase{"BFloat16", v1::DTYPE_BFLOAT16},
                                           PromptCase{"WindowWithSinks", v1::DTYPE_FLOAT32,
                                                      [](auto& r) {
                                                        r.mutable_config()->set_window_left(20);
                                                        r.mutable_config()->set_sink_tokens(4);
                                                      }},
                                           PromptCase{
                                               "CapAlibiAndLearnedSinks", v1::DTYPE_BFLOAT16,
                                               [](auto& r) {
                                                 r.mutable_config()->set_soft_cap(4);
                                                 *r.mutable_config()->mutable_alibi_slopes() =
                                                     RandomTensor(v1::DTYPE_FLOAT32, {4}, 3, 0.1f);
                                                 *r.mutable_config()->mutable_sink_logits() =
                                                     RandomTensor(v1::DTYPE_FLOAT32, {4}, 4);
                                               }}),
                         [](const auto& info) { return std::string(info.param.name); });

TEST_F(SessionTest, LayersHaveLengthsOfTheirOwnAndTheLeastIsCommitted) {
  constexpr int kLayers = 30;
  const v1::SessionHandle handle = MustCreate(shared_server(), {.num_layers = kLayers}).handle();
  v1::StepRequest request;
  std::vector<v1::AttendRequest> prompts;
  for (int layer = 0; layer < kLayers; ++layer) {
    prompts.push_back(MakePrompt(9, v1::DTYPE_FLOAT32, 10u + static_cast<unsigned>(layer)));
    if (layer == 17) continue;
    *request.add_steps() = MakeStep(prompts.back(), handle, 0, 9, layer);
  }
  v1::StepResponse response;
  ASSERT_TRUE(shared_server().sessions().Step(NewContext().get(), request, &response).ok());
  for (int i = 0; i < response.results_size(); ++i) {
    EXPECT_EQ(FindMismatch(prompts[static_cast<std::size_t>(request.steps(i).layer())],
                           AsResponse(response.results(i))),
              "");
  }
  v1::Session session = MustGet(shared_server(), handle);
  EXPECT_EQ(session.layer_lengths(16), 9);
  EXPECT_EQ(session.layer_lengths(17), 0);
  EXPECT_EQ(session.committed_length(), 0);
  EXPECT_GT(session.kv_bytes(), 0);
  MustStep(shared_server(), MakeStep(prompts[17], handle, 0, 9, 17));
  EXPECT_EQ(MustGet(shared_server(), handle).committed_length(), 9);
}

TEST_F(SessionTest, OneStepServesManySessions) {
  v1::StepRequest request;
  std::vector<v1::AttendRequest> prompts;
  for (unsigned i = 0; i < 12; ++i) {
    const std::int64_t length = 1 + 9 * i;
    prompts.push_back(MakePrompt(length, v1::DTYPE_FLOAT32, 50 + i));
    const v1::SessionHandle handle = MustCreate(shared_server()).handle();
    *request.add_steps() = MakeStep(prompts.back(), handle, 0, length);
  }
  v1::StepResponse response;
  ASSERT_TRUE(shared_server().sessions().Step(NewContext().get(), request, &response).ok());
  ASSERT_EQ(response.results_size(), 12);
  for (int i = 0; i < 12; ++i) {
    EXPECT_EQ(FindMismatch(prompts[static_cast<std::size_t>(i)], AsResponse(response.results(i))),
              "")
        << i;
  }
}

TEST_F(SessionTest, StepsOfOneLayerInOneRequestAreAppliedInOrder) {
  const v1::AttendRequest prompt = MakePrompt(30);
  const v1::SessionHandle handle = MustCreate(shared_server()).handle();
  v1::StepRequest request;
  for (std::int64_t begin = 0; begin < 30; begin += 10) {
    *request.add_steps() = MakeStep(prompt, handle, begin, begin + 10);
  }
  v1::StepResponse response;
  ASSERT_TRUE(shared_server().sessions().Step(NewContext().get(), request, &response).ok());
  v1::AttendResponse all;
  for (const v1::SessionStepResult& result : response.results()) {
    AppendRows(result.output(), all.mutable_output());
    AppendRows(result.lse(), all.mutable_lse());
  }
  EXPECT_EQ(FindMismatch(prompt, all), "");
}

TEST_F(SessionTest, AFailedStepLeavesTheOthersOfItsRequestAlone) {
  const v1::AttendRequest prompt = MakePrompt(8);
  const v1::SessionHandle handle = MustCreate(shared_server()).handle();
  const v1::SessionHandle other = MustCreate(shared_server()).handle();
  v1::StepRequest request;
  *request.add_steps() = MakeStep(prompt, handle, 3, 8);  // a gap
  *request.add_steps() = MakeStep(prompt, other, 0, 8);
  request.add_steps()->CopyFrom(MakeStep(prompt, other, 0, 8, /*layer=*/1));
  v1::StepResponse response;
  ASSERT_TRUE(shared_server().sessions().Step(NewContext().get(), request, &response).ok());
  ExpectMismatch(response.results(0), "0");
  EXPECT_FALSE(response.results(0).has_output());
  EXPECT_EQ(FindMismatch(prompt, AsResponse(response.results(1))), "");
  EXPECT_THAT(response.results(2).error(), FailsWith(grpc::INVALID_ARGUMENT, "layer is 1"));
}

TEST_F(SessionTest, AppendOnlyThenAttendOnlyIsTheSameAsBothAtOnce) {
  const v1::AttendRequest prompt = MakePrompt(40);
  const v1::SessionHandle handle = MustCreate(shared_server()).handle();
  const v1::SessionStepResult appended =
      MustStep(shared_server(), MakeAppend(prompt, handle, 0, 40));
  EXPECT_EQ(appended.position(), 40);
  EXPECT_FALSE(appended.has_output());
  const v1::AttendResponse attended =
      AsResponse(MustStep(shared_server(), MakeAttend(prompt, handle, 0, 40)));
  EXPECT_EQ(FindMismatch(prompt, attended), "");
  const v1::AttendResponse at_once =
      Feed(shared_server(), prompt, MustCreate(shared_server()).handle(), 40);
  EXPECT_TRUE(SameAnswer(attended, at_once));
}

TEST_F(SessionTest, AttendOnlyLooksBackToAnEarlierLength) {
  const v1::AttendRequest prompt = MakePrompt(40);
  const v1::SessionHandle handle = MustCreate(shared_server()).handle();
  const v1::AttendResponse whole = Feed(shared_server(), prompt, handle, 40);
  const v1::SessionStepResult earlier =
      MustStep(shared_server(), MakeAttend(prompt, handle, 10, 25));
  EXPECT_TRUE(SameBits(earlier.output(), Rows(whole.output(), 10, 25)));
  EXPECT_EQ(earlier.position(), 40);
}

TEST_F(SessionTest, BiasMaskAndColumnSumsAreOverTheAttendedLength) {
  const v1::AttendRequest prompt = MakePrompt(40);
  const v1::SessionHandle handle = MustCreate(shared_server()).handle();
  MustStep(shared_server(), MakeAppend(prompt, handle, 0, 40));
  v1::AttendRequest expected = MakeAttendRequest({.q_lens = {6}, .kv_lens = {40}, .seed = 8});
  *expected.mutable_k() = prompt.k();
  *expected.mutable_v() = prompt.v();
  *expected.mutable_bias() = RandomTensor(v1::DTYPE_FLOAT32, {4, 6, 40}, 9);
  *expected.mutable_mask() = RandomMask({6, 40}, 9);
  expected.mutable_returns()->set_column_sums(true);
  v1::SessionStep step = MakeAttend(expected, handle, 0, 6);
  step.set_expected_position(40);
  *step.mutable_bias() = expected.bias();
  *step.mutable_mask() = expected.mask();
  EXPECT_EQ(FindMismatch(expected, AsResponse(MustStep(shared_server(), step))), "");
}

TEST_F(SessionTest, AxesOfOneOfBiasAndMaskBroadcast) {
  const v1::AttendRequest prompt = MakePrompt(40);
  const v1::SessionHandle handle = MustCreate(shared_server()).handle();
  MustStep(shared_server(), MakeAppend(prompt, handle, 0, 40));
  v1::AttendRequest expected = MakeAttendRequest({.q_lens = {6}, .kv_lens = {40}, .seed = 8});
  *expected.mutable_k() = prompt.k();
  *expected.mutable_v() = prompt.v();
  for (const Shape& shape : {Shape{1, 1, 1, 40}, Shape{4, 6, 1}, Shape{1, 40}, Shape{1, 1}}) {
    SCOPED_TRACE(::testing::PrintToString(shape));
    *expected.mutable_bias() = RandomTensor(v1::DTYPE_FLOAT16, shape, 9);
    *expected.mutable_mask() = RandomMask(shape, 9);
    v1::SessionStep step = MakeAttend(expected, handle, 0, 6);
    step.set_expected_position(40);
    *step.mutable_bias() = expected.bias();
    *step.mutable_mask() = expected.mask();
    EXPECT_EQ(FindMismatch(expected, AsResponse(MustStep(shared_server(), step))), "");
  }
}

TEST_F(SessionTest, WhatIsAskedForIsThereWhateverTheLengths) {
  const v1::AttendRequest prompt = MakePrompt(10);
  const v1::SessionHandle handle = MustCreate(shared_server()).handle();
  v1::SessionStep step = MakeStep(prompt, handle, 0, 10);
  step.mutable_returns()->set_lse(true);
  step.mutable_returns()->set_column_sums(true);
  step.set_kv_end(0);
  v1::SessionStepResult result = MustStep(shared_server(), step);
  ASSERT_TRUE(result.has_column_sums());
  EXPECT_EQ(ShapeOf(result.column_sums()), (Shape{0, 4}));
  EXPECT_EQ(ShapeOf(result.output()), (Shape{10, 4, 32}));
  step = MakeAttend(prompt, handle, 0, 0);  // no queries
  step.set_expected_position(10);
  step.mutable_returns()->set_lse(true);
  step.mutable_returns()->set_column_sums(true);
  result = MustStep(shared_server(), step);
  ASSERT_TRUE(result.has_output() && result.has_lse());
  EXPECT_EQ(ShapeOf(result.output()), (Shape{0, 4, 32}));
  EXPECT_EQ(ShapeOf(result.lse()), (Shape{0, 4}));
  EXPECT_EQ(ShapeOf(result.column_sums()), (Shape{10, 4}));
}

TEST_F(SessionTest, RangesOfTheCacheMergeByTheirLse) {
  const v1::AttendRequest prompt = MakePrompt(100);
  const v1::SessionHandle handle = MustCreate(shared_server()).handle();
  MustStep(shared_server(), MakeAppend(prompt, handle, 0, 100));
  std::vector<client::Tensor> tensors;
  for (const auto& [begin, end] : {std::pair{0, 33}, {33, 64}, {64, 100}}) {
    v1::SessionStep step = MakeAttend(prompt, handle, 0, 100);
    step.set_kv_begin(begin);
    step.set_kv_end(end);
    const v1::SessionStepResult part = MustStep(shared_server(), step);
    for (const v1::Tensor* tensor : {&part.output(), &part.lse()}) {
      tensors.emplace_back(client::DType::kFloat32, ShapeOf(*tensor), tensor->data());
    }
  }
  const std::vector<client::Partial> parts = {
      {&tensors[0], &tensors[1]}, {&tensors[2], &tensors[3]}, {&tensors[4], &tensors[5]}};
  const auto merged = client::MergePartials(parts);
  ASSERT_TRUE(merged.ok()) << merged.status();
  v1::AttendResponse response;
  *response.mutable_output() =
      MakeTensor(v1::DTYPE_FLOAT32, merged->output.shape(), merged->output.floats());
  *response.mutable_lse() =
      MakeTensor(v1::DTYPE_FLOAT32, merged->lse.shape(), merged->lse.floats());
  EXPECT_EQ(FindMismatch(prompt, response), "");
}

TEST_F(SessionTest, AStepAppliedBeforeIsReplayedWithTheSameBits) {
  const v1::AttendRequest prompt = MakePrompt(40);
  const v1::SessionHandle handle = MustCreate(shared_server()).handle();
  const v1::SessionStep first = MakeStep(prompt, handle, 0, 25);
  const v1::SessionStep second = MakeStep(prompt, handle, 25, 40);
  const v1::SessionStepResult first_result = MustStep(shared_server(), first);
  const v1::SessionStepResult second_result = MustStep(shared_server(), second);
  for (const auto& [step, result] : {std::pair{&second, &second_result}, {&first, &first_result}}) {
    const v1::SessionStepResult replay = MustStep(shared_server(), *step);
    EXPECT_TRUE(replay.is_replay());
    EXPECT_EQ(replay.position(), 40);
    EXPECT_TRUE(SameAnswer(AsResponse(replay), AsResponse(*result)));
  }
  const v1::SessionStepResult append =
      MustStep(shared_server(), MakeAppend(prompt, handle, 10, 20));
  EXPECT_TRUE(append.is_replay());
  EXPECT_EQ(MustGet(shared_server(), handle).layer_lengths(0), 40);
}

TEST_F(SessionTest, AGapOrAnOverlapIsToldWithTheActualPosition) {
  const v1::AttendRequest prompt = MakePrompt(40);
  const v1::SessionHandle handle = MustCreate(shared_server()).handle();
  MustStep(shared_server(), MakeStep(prompt, handle, 0, 20));
  ExpectMismatch(RunStep(shared_server(), MakeStep(prompt, handle, 21, 30)), "20");
  ExpectMismatch(RunStep(shared_server(), MakeStep(prompt, handle, 15, 30)), "20");
  ExpectMismatch(RunStep(shared_server(), MakeAttend(prompt, handle, 0, 30)), "20");
  EXPECT_EQ(MustGet(shared_server(), handle).layer_lengths(0), 20);
  MustStep(shared_server(), MakeStep(prompt, handle, 20, 40));
}

TEST_F(SessionTest, OtherRowsAreNoReplay) {
  const v1::AttendRequest prompt = MakePrompt(12), other = MakePrompt(12, v1::DTYPE_FLOAT32, 2);
  const v1::SessionHandle handle = MustCreate(shared_server()).handle();
  const v1::SessionStep drafts = MakeStep(prompt, handle, 9, 12);
  MustStep(shared_server(), MakeStep(prompt, handle, 0, 9));
  MustStep(shared_server(), drafts);
  const v1::SessionStepResult refused = RunStep(shared_server(), MakeStep(other, handle, 9, 10));
  ExpectMismatch(refused, "12");
  EXPECT_THAT(refused.error(), FailsWith(kFailedPrecondition, "TruncateSession"));
  v1::SessionStep one_wrong = drafts;
  std::string& bytes = *one_wrong.mutable_v()->mutable_data();
  bytes.back() = static_cast<char>(bytes.back() ^ 1);
  ExpectMismatch(RunStep(shared_server(), one_wrong), "12");
  ExpectMismatch(
      RunStep(shared_server(), MakeStep(MakePrompt(12, v1::DTYPE_BFLOAT16), handle, 9, 12)), "12");
  EXPECT_TRUE(MustStep(shared_server(), drafts).is_replay());
  EXPECT_TRUE(MustStep(shared_server(), MakeAppend(prompt, handle, 3, 11)).is_replay())
      << "cut in another way";
}

TEST_F(SessionTest, AStepThatCannotAttendDoesNotAppend) {
  const v1::AttendRequest prompt = MakePrompt(20);
  const v1::SessionHandle handle = MustCreate(shared_server()).handle();
  v1::SessionStep step = MakeStep(prompt, handle, 0, 20);
  *step.mutable_mask() = RandomMask({20, 19}, 1);
  EXPECT_THAT(RunStep(shared_server(), step).error(),
              FailsWith(grpc::INVALID_ARGUMENT, "mask.shape ends with 19, expected 1 or"));
  step = MakeStep(prompt, handle, 0, 20);
  step.set_kv_end(21);
  EXPECT_THAT(RunStep(shared_server(), step).error(),
              FailsWith(grpc::INVALID_ARGUMENT, "kv_end is 21"));
  EXPECT_EQ(MustGet(shared_server(), handle).layer_lengths(0), 0);
  MustStep(shared_server(), MakeStep(prompt, handle, 0, 20));
}

struct DTypes {
  v1::DType q, rows, cache;
};

TEST_F(SessionTest, RowsAreRoundedIntoTheCachesType) {
  constexpr DTypes kCases[] = {
      {v1::DTYPE_FLOAT32, v1::DTYPE_FLOAT32, v1::DTYPE_BFLOAT16},
      {v1::DTYPE_FLOAT32, v1::DTYPE_FLOAT32, v1::DTYPE_FLOAT16},
      {v1::DTYPE_FLOAT32, v1::DTYPE_FLOAT16, v1::DTYPE_BFLOAT16},
      {v1::DTYPE_FLOAT32, v1::DTYPE_BFLOAT16, v1::DTYPE_FLOAT32},
      {v1::DTYPE_BFLOAT16, v1::DTYPE_BFLOAT16, v1::DTYPE_FLOAT32},
      {v1::DTYPE_FLOAT16, v1::DTYPE_FLOAT32, v1::DTYPE_FLOAT16},
  };
  for (const DTypes& dtypes : kCases) {
    SCOPED_TRACE(v1::DType_Name(dtypes.rows) + " into " + v1::DType_Name(dtypes.cache));
    v1::AttendRequest given = MakePrompt(40);
    *given.mutable_q() = Converted(given.q(), dtypes.q);
    *given.mutable_k() = Converted(given.k(), dtypes.rows);
    *given.mutable_v() = Converted(given.v(), dtypes.rows);
    v1::AttendRequest stored = given;
    for (v1::Tensor* tensor : {stored.mutable_k(), stored.mutable_v()}) {
      *tensor = Converted(Converted(*tensor, dtypes.cache), dtypes.q);
    }
    const SessionSpec spec{.kv_dtype = dtypes.cache};
    const v1::SessionHandle handle = MustCreate(shared_server(), spec).handle();
    EXPECT_EQ(FindMismatch(stored, Feed(shared_server(), given, handle, 16)), "");
  }
}

TEST_F(SessionTest, ACacheOfInt8OrFloat8HoldsRowsWithAScaleEach) {
  constexpr std::int64_t kLength = 70;
  const v1::AttendRequest given = MakePrompt(kLength);
  for (const auto& [wire, dtype] :
       {std::pair{v1::DTYPE_INT8, DType::kInt8}, {v1::DTYPE_FLOAT8_E4M3, DType::kFloat8E4M3}}) {
    SCOPED_TRACE(v1::DType_Name(wire));
    v1::AttendRequest stored = given;
    for (v1::Tensor* tensor : {stored.mutable_k(), stored.mutable_v()}) {
      *tensor = Quantized(*tensor, dtype);
    }
    const SessionSpec spec{.kv_dtype = wire};
    const auto feed = [&](std::int64_t chunk) {
      const v1::Session session = MustCreate(shared_server(), spec);
      EXPECT_EQ(session.geometry().kv_dtype(), spec.kv_dtype);
      return Feed(shared_server(), given, session.handle(), chunk);
    };
    const v1::AttendResponse whole = feed(kLength);
    EXPECT_EQ(FindMismatch(stored, whole), "");
    for (const std::int64_t chunk : {33, 1}) EXPECT_TRUE(SameAnswer(feed(chunk), whole));
  }
}

TEST_F(SessionTest, AnEncodersKeysServeEveryStepOfADecoder) {
  const v1::AttendRequest encoder = MakeAttendRequest({.q_lens = {1}, .kv_lens = {77}});
  const v1::SessionHandle handle = MustCreate(shared_server()).handle();
  MustStep(shared_server(), MakeAppend(encoder, handle, 0, 77));
  for (unsigned i = 0; i < 6; ++i) {
    v1::AttendRequest decoder = encoder;
    *decoder.mutable_q() = RandomTensor(v1::DTYPE_FLOAT32, {1 + i, 8, 32}, 90 + i);
    v1::SessionStep step = MakeAttend(decoder, handle, 0, 1 + i);
    step.clear_expected_position();
    const v1::SessionStepResult result = MustStep(shared_server(), step);
    EXPECT_EQ(FindMismatch(decoder, AsResponse(result)), "");
    EXPECT_EQ(result.position(), 77);
  }
}

TEST_F(SessionTest, TheSdksSessionKeepsThePosition) {
  const v1::AttendRequest prompt = MakePrompt(30);
  auto client = shared_server().NewClient();
  client::SessionOptions options;
  options.geometry = {.num_layers = 1, .num_kv_heads = 2, .head_dim_qk = 32, .head_dim_v = 32};
  auto session = client->CreateSession(options);
  ASSERT_TRUE(session.ok()) << session.status();
  const auto view = [](const v1::Tensor& tensor) {
    return client::TensorView(tensor.data().data(), client::DType::kFloat32, ShapeOf(tensor));
  };
  v1::AttendResponse all;
  for (const auto& [begin, end] : {std::pair{0, 20}, {20, 29}, {29, 30}}) {
    const v1::Tensor q = Rows(prompt.q(), begin, end);
    const v1::Tensor k = Rows(prompt.k(), begin, end);
    const v1::Tensor v = Rows(prompt.v(), begin, end);
    client::LayerStep step{.q = view(q), .k = view(k), .v = view(v)};
    step.config.is_causal = true;
    step.returns.lse = true;
    const auto result = session->Step(step);
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_EQ(session->position(0), end);
    AppendRows(MakeTensor(v1::DTYPE_FLOAT32, result->output.shape(), result->output.floats()),
               all.mutable_output());
    AppendRows(MakeTensor(v1::DTYPE_FLOAT32, result->lse.shape(), result->lse.floats()),
               all.mutable_lse());
  }
  EXPECT_EQ(FindMismatch(prompt, all), "");
  ASSERT_TRUE(session->Refresh().ok());
  EXPECT_EQ(session->info().committed_length, 30);
  EXPECT_TRUE(session->Delete().ok());
}

TEST_F(SessionTest, RowsAreCopiedOnceIntoTheCache) {
  const v1::AttendRequest prompt = MakePrompt(2000);
  const v1::SessionHandle handle = MustCreate(shared_server()).handle();
  v1::StepRequest request;
  *request.add_steps() = MakeStep(prompt, handle, 0, 2000);
  v1::StepResponse response;
  ASSERT_TRUE(shared_server().sessions().Step(NewContext().get(), request, &response).ok());
  const v1::SessionStep& step = request.steps(0);
  const auto bytes = static_cast<std::int64_t>(step.q().data().size() + step.k().data().size() +
                                               step.v().data().size());
  EXPECT_GE(response.timing().copied_bytes(), bytes);
  // A socket is read 64 KiB at a time at most, and each time may cut a row in two.
  EXPECT_LE(response.timing().copied_bytes(), bytes + bytes / 50);
}

// Over the cache as the step leaves it, in the order of its tokens.
TEST_F(SessionTest, AStepAnswersItsWeights) {
  v1::AttendRequest prompt = MakePrompt(300);
  prompt.mutable_returns()->set_weights(true);
  const v1::SessionHandle handle = MustCreate(shared_server()).handle();
  MustStep(shared_server(), MakeAppend(prompt, handle, 0, 250));
  const v1::SessionStepResult result =
      MustStep(shared_server(), MakeStep(prompt, handle, 250, 300));
  EXPECT_EQ(ShapeOf(result.weights()), (Shape{50, prompt.q().shape(1), 300}));
  const v1::AttendResponse whole = MustAttend(shared_server(), prompt);
  EXPECT_TRUE(SameBits(result.weights(), Rows(whole.weights(0).weights(), 250, 300)));
  v1::SessionStep step = MakeAttend(prompt, handle, 299, 300);
  step.set_kv_end(100);
  step.mutable_config()->set_is_causal(false);
  EXPECT_EQ(MustStep(shared_server(), step).weights().shape(2), 100);
}

}  // namespace
}  // namespace attention::testing
