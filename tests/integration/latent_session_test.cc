// Latent attention through the wire: values are the first elements of their keys, and what a
// session or a call answers is what it would answer were they given.
#include <vector>

#include "tests/support/session_driver.h"

namespace attention::testing {
namespace {

constexpr int kDimQk = 48, kDimV = 40, kQueryHeads = 16;

class LatentTest : public ServiceFixture {
 protected:
  // The first kDimV elements of each row.
  static v1::Tensor PrefixOf(const v1::Tensor& keys) {
    std::vector<float> values;
    for (std::int64_t i = 0; i < NumElements(keys); ++i) {
      if (i % kDimQk < kDimV) values.push_back(ElementAt(keys, i));
    }
    return MakeTensor(keys.dtype(), {keys.shape(0), keys.shape(1), kDimV}, values);
  }

  // A causal prompt with its values, over one KV head.
  static v1::AttendRequest Prompt(std::int64_t length, v1::DType dtype) {
    v1::AttendRequest prompt = MakeAttendRequest({.num_q_heads = kQueryHeads,
                                                  .num_kv_heads = 1,
                                                  .head_dim_qk = kDimQk,
                                                  .head_dim_v = kDimV,
                                                  .dtype = dtype,
                                                  .q_lens = {length},
                                                  .kv_lens = {length}});
    prompt.mutable_config()->set_is_causal(true);
    *prompt.mutable_v() = PrefixOf(prompt.k());
    return prompt;
  }

  static v1::SessionHandle Create(v1::DType dtype) {
    v1::CreateSessionRequest request = MakeCreateRequest(
        {.num_kv_heads = 1, .head_dim_qk = kDimQk, .head_dim_v = kDimV, .kv_dtype = dtype});
    request.mutable_geometry()->set_value_is_key_prefix(true);
    v1::CreateSessionResponse response;
    const grpc::Status status =
        shared_server().sessions().CreateSession(NewContext().get(), request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    EXPECT_TRUE(response.session().geometry().value_is_key_prefix());
    return response.session().handle();
  }
};

TEST_F(LatentTest, ACallWithoutValuesAnswersAsOneWithThem) {
  for (v1::DType dtype : {v1::DTYPE_FLOAT32, v1::DTYPE_FLOAT16, v1::DTYPE_BFLOAT16}) {
    const v1::AttendRequest given = Prompt(45, dtype);
    v1::AttendRequest latent = given;
    latent.clear_v();
    latent.set_value_is_key_prefix(true);
    latent.set_head_dim_v(kDimV);
    v1::AttendResponse response;
    const grpc::Status status = Attend(shared_server(), latent, &response);
    ASSERT_TRUE(status.ok()) << status.error_message();
    EXPECT_EQ(FindMismatch(given, response), "");
    EXPECT_TRUE(SameAnswer(response, MustAttend(shared_server(), given)));
  }
}

TEST_F(LatentTest, ASessionInChunksAnswersAsTheWholePromptDoes) {
  for (v1::DType dtype : {v1::DTYPE_FLOAT32, v1::DTYPE_BFLOAT16}) {
    const v1::AttendRequest prompt = Prompt(70, dtype);
    const v1::SessionHandle handle = Create(dtype);
    v1::AttendResponse all;
    for (std::int64_t begin = 0; begin < 70; begin += 10) {
      v1::SessionStep step = MakeStep(prompt, handle, begin, begin + 10);
      step.clear_v();
      const v1::SessionStepResult result = MustStep(shared_server(), step);
      EXPECT_EQ(result.position(), begin + 10);
      AppendRows(result.output(), all.mutable_output());
      AppendRows(result.lse(), all.mutable_lse());
    }
    EXPECT_TRUE(SameAnswer(all, MustAttend(shared_server(), prompt)));
  }
}

// Rows of several steps of one call are appended together.
TEST_F(LatentTest, StepsOfOneRequestAreAppliedInOrder) {
  const v1::AttendRequest prompt = Prompt(30, v1::DTYPE_FLOAT32);
  const v1::SessionHandle handle = Create(v1::DTYPE_FLOAT32);
  v1::StepRequest request;
  for (std::int64_t begin : {0, 10, 20}) {
    *request.add_steps() = MakeStep(prompt, handle, begin, begin + 10);
    request.mutable_steps(request.steps_size() - 1)->clear_v();
  }
  v1::StepResponse response;
  const grpc::Status status =
      shared_server().sessions().Step(NewContext().get(), request, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  v1::AttendResponse all;
  for (const v1::SessionStepResult& result : response.results()) {
    ASSERT_FALSE(result.has_error()) << result.error().message();
    AppendRows(result.output(), all.mutable_output());
    AppendRows(result.lse(), all.mutable_lse());
  }
  EXPECT_TRUE(SameAnswer(all, MustAttend(shared_server(), prompt)));
}

TEST_F(LatentTest, APageHoldsKeysAlone) {
  const v1::AttendRequest prompt = Prompt(64, v1::DTYPE_FLOAT32);
  const v1::SessionHandle latent = Create(v1::DTYPE_FLOAT32);
  v1::SessionStep step = MakeAppend(prompt, latent, 0, 64);
  step.clear_v();
  MustStep(shared_server(), step);
  EXPECT_EQ(MustGet(shared_server(), latent).kv_bytes(), 64 * kDimQk * 4);
}

TEST_F(LatentTest, ValuesBesideThemAreRefusedAndNothingIsAppended) {
  const v1::AttendRequest prompt = Prompt(10, v1::DTYPE_FLOAT32);
  const v1::SessionHandle handle = Create(v1::DTYPE_FLOAT32);
  const v1::SessionStepResult result = RunStep(shared_server(), MakeStep(prompt, handle, 0, 10));
  EXPECT_THAT(result.error(), FailsWith(grpc::INVALID_ARGUMENT, "v is given, expected none"));
  EXPECT_EQ(MustGet(shared_server(), handle).committed_length(), 0);
}

TEST_F(LatentTest, TheSdkStepsAndAttendsWithoutValues) {
  const v1::AttendRequest prompt = Prompt(20, v1::DTYPE_FLOAT32);
  const auto view = [](const v1::Tensor& tensor) {
    return client::TensorView(tensor.data().data(), client::DType::kFloat32, ShapeOf(tensor));
  };
  auto client = shared_server().NewClient();
  auto session = client->CreateSession({.geometry = {.num_kv_heads = 1,
                                                     .head_dim_qk = kDimQk,
                                                     .head_dim_v = kDimV,
                                                     .value_is_key_prefix = true}});
  ASSERT_TRUE(session.ok()) << session.status();
  EXPECT_TRUE(session->info().geometry.value_is_key_prefix);
  client::LayerStep step{.q = view(prompt.q()), .k = view(prompt.k())};
  step.config.is_causal = true;
  const auto stepped = session->Step(step);
  ASSERT_TRUE(stepped.ok()) << stepped.status();
  step.v = view(prompt.v());
  EXPECT_EQ(session->Step(step).status().code(), absl::StatusCode::kInvalidArgument);

  client::AttendRequest request{.q = view(prompt.q()), .k = view(prompt.k())};
  request.config.is_causal = true;
  request.value_is_key_prefix = true;
  request.head_dim_v = kDimV;
  const auto attended = client->Attend(request);
  ASSERT_TRUE(attended.ok()) << attended.status();
  const auto rows = stepped->output.floats();
  const auto others = attended->output.floats();
  EXPECT_EQ(std::vector<float>(rows.begin(), rows.end()),
            std::vector<float>(others.begin(), others.end()));
}

TEST_F(LatentTest, ExplainCountsKeysOnce) {
  v1::ExplainRequest request;
  request.set_num_q_heads(128);
  request.set_num_kv_heads(1);
  request.set_head_dim_qk(576);
  request.set_head_dim_v(512);
  request.set_dtype(v1::DTYPE_BFLOAT16);
  request.set_q_len(1);
  request.set_kv_len(100);
  request.set_value_is_key_prefix(true);
  v1::ExplainResponse response;
  const grpc::Status status =
      shared_server().info().Explain(NewContext().get(), request, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_TRUE(response.is_supported()) << response.unsupported_reason();
  EXPECT_EQ(response.kv_bytes(), 100 * 576 * 2);
  EXPECT_EQ(response.flops(), 2.0 * (576 + 512) * 100 * 128);
}

}  // namespace
}  // namespace attention::testing
