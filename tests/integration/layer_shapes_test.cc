// Sessions whose layers differ, and layers with windows, through the wire.
#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include "attention/client/errors.h"
#include "tests/support/session_driver.h"

namespace attention::testing {
namespace {

constexpr std::int64_t kLength = 150, kWindow = 24, kSinks = 3;

// A layer, and what its prompt is made of.
struct LayerSpec {
  int num_kv_heads = 2;
  int head_dim_qk = 32;
  int head_dim_v = 32;
  v1::DType dtype = v1::DTYPE_FLOAT32;
  bool is_latent = false;
  std::int64_t window = 0;
  std::int64_t sinks = 0;
};
const std::vector<LayerSpec> kLayers = {{},
                                        {.window = kWindow, .sinks = kSinks},
                                        {.num_kv_heads = 1,
                                         .head_dim_qk = 48,
                                         .head_dim_v = 40,
                                         .dtype = v1::DTYPE_BFLOAT16,
                                         .is_latent = true},
                                        {.num_kv_heads = 1, .head_dim_qk = 512, .head_dim_v = 512},
                                        {.num_kv_heads = 4,
                                         .head_dim_qk = 24,
                                         .head_dim_v = 56,
                                         .dtype = v1::DTYPE_BFLOAT16,
                                         .window = 64}};

// The first dims of each row.
v1::Tensor PrefixOf(const v1::Tensor& keys, std::int64_t dims) {
  std::vector<float> values;
  for (std::int64_t i = 0; i < NumElements(keys); ++i) {
    if (i % keys.shape(2) < dims) values.push_back(ElementAt(keys, i));
  }
  return MakeTensor(keys.dtype(), {keys.shape(0), keys.shape(1), dims}, values);
}

v1::AttendRequest PromptOf(const LayerSpec& layer, std::int64_t length = kLength) {
  v1::AttendRequest prompt = MakeAttendRequest({.num_kv_heads = layer.num_kv_heads,
                                                .head_dim_qk = layer.head_dim_qk,
                                                .head_dim_v = layer.head_dim_v,
                                                .dtype = layer.dtype,
                                                .q_lens = {length},
                                                .kv_lens = {length}});
  prompt.mutable_config()->set_is_causal(true);
  if (layer.is_latent) *prompt.mutable_v() = PrefixOf(prompt.k(), layer.head_dim_v);
  if (layer.window > 0) {
    prompt.mutable_config()->set_window_left(layer.window - 1);
    prompt.mutable_config()->set_sink_tokens(layer.sinks);
  }
  return prompt;
}

v1::CreateSessionRequest CreateOf(const std::vector<LayerSpec>& layers) {
  v1::CreateSessionRequest request;
  for (const LayerSpec& layer : layers) {
    v1::LayerShape* shape = request.mutable_geometry()->add_layers();
    shape->set_num_kv_heads(layer.num_kv_heads);
    shape->set_head_dim_qk(layer.head_dim_qk);
    shape->set_head_dim_v(layer.head_dim_v);
    shape->set_kv_dtype(layer.dtype);
    shape->set_value_is_key_prefix(layer.is_latent);
    shape->set_window_tokens(layer.window);
    shape->set_sink_tokens(layer.sinks);
  }
  return request;
}

class LayerShapesTest : public ServiceFixture {
 protected:
  static grpc::Status Create(const v1::CreateSessionRequest& request, v1::Session* session) {
    v1::CreateSessionResponse response;
    const grpc::Status status =
        shared_server().sessions().CreateSession(NewContext().get(), request, &response);
    *session = response.session();
    return status;
  }
  static v1::Session MustCreateOf(const std::vector<LayerSpec>& layers) {
    v1::Session session;
    const grpc::Status status = Create(CreateOf(layers), &session);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return session;
  }
  static v1::SessionStep StepOf(const LayerSpec& layer, const v1::AttendRequest& prompt,
                                const v1::SessionHandle& handle, std::int64_t begin,
                                std::int64_t end, int index) {
    v1::SessionStep step = MakeStep(prompt, handle, begin, end, index);
    if (layer.is_latent) step.clear_v();
    return step;
  }
};

TEST_F(LayerShapesTest, EachLayerAnswersAsTheCallWithoutASessionDoes) {
  for (const std::int64_t chunk : {std::int64_t{1}, std::int64_t{7}, std::int64_t{64}, kLength}) {
    const v1::SessionHandle handle = MustCreateOf(kLayers).handle();
    std::vector<v1::AttendRequest> prompts;
    std::vector<v1::AttendResponse> answers(kLayers.size());
    for (const LayerSpec& layer : kLayers) prompts.push_back(PromptOf(layer));
    for (std::int64_t begin = 0; begin < kLength; begin += chunk) {
      const std::int64_t end = std::min(begin + chunk, kLength);
      v1::StepRequest request;
      for (std::size_t i = 0; i < kLayers.size(); ++i) {
        *request.add_steps() =
            StepOf(kLayers[i], prompts[i], handle, begin, end, static_cast<int>(i));
      }
      v1::StepResponse response;
      const grpc::Status status =
          shared_server().sessions().Step(NewContext().get(), request, &response);
      ASSERT_TRUE(status.ok()) << status.error_message();
      for (std::size_t i = 0; i < kLayers.size(); ++i) {
        const v1::SessionStepResult& result = response.results(static_cast<int>(i));
        ASSERT_FALSE(result.has_error()) << result.error().message();
        AppendRows(result.output(), answers[i].mutable_output());
        AppendRows(result.lse(), answers[i].mutable_lse());
      }
    }
    for (std::size_t i = 0; i < kLayers.size(); ++i) {
      EXPECT_EQ(FindMismatch(prompts[i], answers[i]), "") << "layer " << i;
      EXPECT_TRUE(SameAnswer(answers[i], MustAttend(shared_server(), prompts[i])))
          << "layer " << i << " by " << chunk;
    }
  }
}

TEST_F(LayerShapesTest, TheGeometryComesBackInTheFormThatWasGiven) {
  v1::CreateSessionRequest request = CreateOf(kLayers);
  v1::Session session;
  ASSERT_TRUE(Create(request, &session).ok());
  request.mutable_geometry()->set_num_layers(static_cast<int>(kLayers.size()));
  EXPECT_EQ(session.geometry().SerializeAsString(), request.geometry().SerializeAsString());
  EXPECT_EQ(MustGet(shared_server(), session.handle()).geometry().SerializeAsString(),
            request.geometry().SerializeAsString());
  EXPECT_EQ(session.layer_lengths_size(), static_cast<int>(kLayers.size()));
}

TEST_F(LayerShapesTest, ANameFindsTheSameShapesInEitherForm) {
  v1::CreateSessionRequest layered = CreateOf({{.window = 32}, {.window = 32}});
  layered.set_name("layer shapes");
  v1::Session session, again;
  ASSERT_TRUE(Create(layered, &session).ok());
  v1::CreateSessionRequest uniform = MakeCreateRequest({.num_layers = 2});
  uniform.set_name("layer shapes");
  EXPECT_EQ(Create(uniform, &again).error_code(), grpc::ALREADY_EXISTS) << "it has no window";
  uniform.mutable_geometry()->set_window_tokens(32);
  ASSERT_TRUE(Create(uniform, &again).ok());
  EXPECT_EQ(again.handle().session_id(), session.handle().session_id());
  EXPECT_TRUE(Delete(shared_server(), session.handle()).ok());
}

TEST_F(LayerShapesTest, ALayerWithAWindowTakesNoMoreThanItKeeps) {
  const LayerSpec layer{.window = kWindow, .sinks = kSinks};
  const v1::SessionHandle handle = MustCreateOf({layer}).handle();
  Feed(shared_server(), PromptOf(layer), handle, 1);
  // Pages of 16 tokens: one of the sinks, and those from 112 = (149 - 24) / 16 * 16 on.
  EXPECT_EQ(MustGet(shared_server(), handle).kv_bytes(), (16 + 48) * 2 * 64 * 4);
}

TEST_F(LayerShapesTest, RowsOfAnotherLayersShapeAreRefused) {
  const v1::SessionHandle handle = MustCreateOf(kLayers).handle();
  const v1::SessionStepResult result =
      RunStep(shared_server(), MakeStep(PromptOf(kLayers[0]), handle, 0, 5, 3));
  EXPECT_THAT(result.error(), FailsWith(grpc::INVALID_ARGUMENT, "expected [num_tokens, 1, 512]"));
}

struct BadLayer {
  const char* name;
  std::function<void(v1::SessionGeometry&)> change;
  const char* error;
};
class BadLayerShapeTest : public LayerShapesTest, public ::testing::WithParamInterface<BadLayer> {};

TEST_P(BadLayerShapeTest, IsRefusedByName) {
  v1::CreateSessionRequest request = CreateOf(kLayers);
  GetParam().change(*request.mutable_geometry());
  v1::Session session;
  EXPECT_THAT(Create(request, &session), FailsWith(grpc::INVALID_ARGUMENT, GetParam().error));
}

INSTANTIATE_TEST_SUITE_P(
    Fields, BadLayerShapeTest,
    ::testing::Values(
        BadLayer{"Dim", [](auto& g) { g.mutable_layers(3)->set_head_dim_qk(600); },
                 "geometry.layers[3].head_dim_qk is 600, expected 1 to 576"},
        BadLayer{"Heads", [](auto& g) { g.mutable_layers(1)->set_num_kv_heads(0); },
                 "geometry.layers[1].num_kv_heads is 0"},
        BadLayer{"Window", [](auto& g) { g.mutable_layers(0)->set_window_tokens(-1); },
                 "geometry.layers[0].window_tokens is -1"},
        BadLayer{"SinksAlone", [](auto& g) { g.mutable_layers(0)->set_sink_tokens(2); },
                 "geometry.layers[0].sink_tokens is 2, expected 0 without window_tokens"},
        BadLayer{"Sinks", [](auto& g) { g.mutable_layers(1)->set_sink_tokens(-2); },
                 "geometry.layers[1].sink_tokens is -2"},
        BadLayer{"Both", [](auto& g) { g.set_head_dim_v(32); },
                 "geometry.head_dim_v is set, expected none beside geometry.layers"},
        BadLayer{"TooMany",
                 [](auto& g) {
                   for (int i = 0; i < 1024; ++i) *g.add_layers() = g.layers(0);
                 },
                 "the number of geometry.layers is 1029, expected 1 to 1024"}),
    [](const auto& info) { return std::string(info.param.name); });

// --- What a window has let go

class WindowTest : public LayerShapesTest {
 protected:
  void SetUp() override {
    handle_ = MustCreateOf({layer_, {}}).handle();
    Feed(shared_server(), prompt_, handle_, 1);
    for (std::int64_t i = 0; i < kLength; i += 50) {
      MustStep(shared_server(), MakeAppend(PromptOf({}), handle_, i, i + 50, 1));
    }
  }
  static void ExpectDropped(const v1::SessionStepResult& result) {
    ASSERT_THAT(result.error(), FailsBecause(grpc::FAILED_PRECONDITION, "WINDOW_DROPPED"));
    EXPECT_EQ(result.error().metadata().at("first_position"), "112");
  }
  static void ExpectDropped(const grpc::Status& status) {
    EXPECT_THAT(status, FailsBecause(grpc::FAILED_PRECONDITION, "WINDOW_DROPPED"));
    EXPECT_EQ(DetailsOf(status).metadata["first_position"], "112");
  }
  // The last step answers what it has answered.
  void ExpectUnchanged() {
    const v1::SessionStepResult last =
        MustStep(shared_server(), MakeStep(prompt_, handle_, kLength - 1, kLength));
    EXPECT_TRUE(last.is_replay());
    EXPECT_EQ(last.position(), kLength);
    const v1::AttendResponse all = MustAttend(shared_server(), prompt_);
    EXPECT_TRUE(SameBits(last.output(), Rows(all.output(), kLength - 1, kLength)));
  }
  grpc::Status Truncate(std::int64_t length) {
    v1::TruncateSessionRequest request;
    *request.mutable_handle() = handle_;
    request.set_length(length);
    v1::TruncateSessionResponse response;
    return shared_server().sessions().TruncateSession(NewContext().get(), request, &response);
  }
  grpc::Status Fork(std::int64_t length, v1::ForkSessionResponse* response) {
    v1::ForkSessionRequest request;
    *request.mutable_handle() = handle_;
    request.set_length(length);
    return shared_server().sessions().ForkSession(NewContext().get(), request, response);
  }

  const LayerSpec layer_{.window = kWindow, .sinks = kSinks};
  const v1::AttendRequest prompt_ = PromptOf(layer_);
  v1::SessionHandle handle_;
};

TEST_F(WindowTest, StepsThatNeedItAreRefusedAndChangeNothing) {
  ExpectDropped(RunStep(shared_server(), MakeStep(prompt_, handle_, 10, 11)));
  ExpectDropped(RunStep(shared_server(), MakeAppend(prompt_, handle_, 100, 120)));
  ExpectDropped(RunStep(shared_server(), MakeStep(prompt_, handle_, 130, 131)));
  ExpectDropped(RunStep(shared_server(), MakeAttend(prompt_, handle_, 119, 120)));
  v1::SessionStep older = MakeAttend(prompt_, handle_, 0, kLength);
  older.set_first_query_position(0);
  ExpectDropped(RunStep(shared_server(), older));
  older = MakeAttend(prompt_, handle_, 140, kLength);
  older.set_first_query_position(100);
  ExpectDropped(RunStep(shared_server(), older));
  ExpectUnchanged();
}

TEST_F(WindowTest, StepsThatDoNotNeedItAreAnswered) {
  EXPECT_TRUE(MustStep(shared_server(), MakeAppend(prompt_, handle_, 130, 140)).is_replay());
  const v1::AttendResponse all = MustAttend(shared_server(), prompt_);
  // Queries that see from position 112 on.
  const v1::SessionStepResult newer =
      MustStep(shared_server(), MakeAttend(prompt_, handle_, 135, kLength));
  EXPECT_TRUE(SameBits(newer.output(), Rows(all.output(), 135, kLength)));
  // Old queries that are given the sinks alone.
  v1::SessionStep sinks = MakeAttend(prompt_, handle_, 100, 120);
  sinks.set_kv_end(kSinks);
  const v1::SessionStepResult partial = MustStep(shared_server(), sinks);
  const v1::SessionHandle whole = MustCreateOf({{}}).handle();
  MustStep(shared_server(), MakeAppend(prompt_, whole, 0, kLength));
  *sinks.mutable_handle() = whole;
  const v1::SessionStepResult expected = MustStep(shared_server(), sinks);
  EXPECT_TRUE(SameBits(partial.output(), expected.output()));
  EXPECT_TRUE(SameBits(partial.lse(), expected.lse()));
}

TEST_F(WindowTest, ChangesThatNeedItAreRefusedAndChangeNothing) {
  v1::ForkSessionResponse copies;
  ExpectDropped(Truncate(100));
  ExpectDropped(Truncate(2));
  ExpectDropped(Fork(135, &copies));
  EXPECT_EQ(MustGet(shared_server(), handle_).committed_length(), kLength);
  ExpectUnchanged();
  ASSERT_TRUE(Fork(136, &copies).ok()) << "112 + 24";
  ASSERT_TRUE(Fork(0, &copies).ok());
  EXPECT_EQ(copies.sessions(0).kv_bytes(), 0);
}

TEST_F(WindowTest, TheLastStepsCanBeTakenBackAndOthersPutInTheirPlace) {
  v1::ForkSessionResponse copies;
  ASSERT_TRUE(Fork(kLength, &copies).ok());
  ASSERT_TRUE(Truncate(140).ok());
  const v1::AttendResponse all = MustAttend(shared_server(), prompt_);
  for (const v1::SessionHandle& handle : {handle_, copies.sessions(0).handle()}) {
    const std::int64_t begin = handle.session_id() == handle_.session_id() ? 140 : kLength - 1;
    const v1::SessionStepResult result =
        MustStep(shared_server(), MakeStep(prompt_, handle, begin, kLength));
    EXPECT_TRUE(SameBits(result.output(), Rows(all.output(), begin, kLength)));
  }
  ASSERT_TRUE(Truncate(0).ok());
  EXPECT_TRUE(SameAnswer(Feed(shared_server(), prompt_, handle_, 50), all));
}

TEST_F(WindowTest, ConfigsThatSeeBeyondTheWindowAreRefusedFromTheFirstStepOn) {
  const v1::SessionHandle handle = MustCreateOf({layer_}).handle();
  const auto refused = [&](const std::function<void(v1::AttentionConfig&)>& change,
                           const char* error) {
    v1::SessionStep step = MakeStep(prompt_, handle, 0, 1);
    change(*step.mutable_config());
    step.set_kv_begin(0);
    EXPECT_THAT(RunStep(shared_server(), step).error(), FailsWith(grpc::INVALID_ARGUMENT, error));
  };
  refused([](auto& config) { config.clear_window_left(); },
          "config.window_left is absent, expected 0 to 23");
  refused([](auto& config) { config.set_window_left(24); },
          "config.window_left is 24, expected 0 to 23");
  refused([](auto& config) { config.set_sink_tokens(4); },
          "config.sink_tokens is 4, expected at most 3");
  refused([](auto& config) { config.set_is_causal(false); }, "config.is_causal is false");
  EXPECT_EQ(MustGet(shared_server(), handle).committed_length(), 0);
}

TEST_F(WindowTest, TheSdkMakesLayersThatDifferAndTellsWhatWasDropped) {
  const auto client = shared_server().NewClient();
  auto session = client->CreateSession(
      {.geometry = {.layers = {{.num_kv_heads = 2,
                                .head_dim_qk = 32,
                                .head_dim_v = 32,
                                .window_tokens = kWindow,
                                .sink_tokens = kSinks},
                               {.num_kv_heads = 1, .head_dim_qk = 8, .head_dim_v = 8}}}});
  ASSERT_TRUE(session.ok()) << session.status();
  EXPECT_EQ(session->info().geometry.num_layers, 2);
  EXPECT_EQ(session->info().geometry.layers.size(), 2u);
  const auto view = [](const v1::Tensor& tensor) {
    return client::TensorView(tensor.data().data(), client::DType::kFloat32, ShapeOf(tensor));
  };
  const client::AttentionConfig config{
      .is_causal = true, .window_left = kWindow - 1, .sink_tokens = kSinks};
  for (std::int64_t begin = 0; begin < kLength; begin += 30) {
    const v1::Tensor q = Rows(prompt_.q(), begin, begin + 30);
    const v1::Tensor k = Rows(prompt_.k(), begin, begin + 30);
    const v1::Tensor v = Rows(prompt_.v(), begin, begin + 30);
    ASSERT_TRUE(session->Step(0, view(q), view(k), view(v), config).ok());
  }
  const auto copies = session->Fork({.length = 0});
  ASSERT_TRUE(copies.ok()) << copies.status();
  const v1::SessionHandle handle = [&] {
    v1::SessionHandle wire;
    wire.set_server_name(session->info().handle.server_name);
    wire.set_server_epoch(session->info().handle.server_epoch);
    wire.set_session_id(session->info().handle.session_id);
    return wire;
  }();
  // The other layer catches up, so that the length is committed.
  for (std::int64_t begin = 0; begin < kLength; begin += 50) {
    v1::SessionStep step =
        MakeAppend(PromptOf({.num_kv_heads = 1, .head_dim_qk = 8, .head_dim_v = 8}), handle, begin,
                   begin + 50, 1);
    MustStep(shared_server(), step);
  }
  const auto truncated = session->Truncate(50);
  EXPECT_EQ(client::ErrorReason(truncated), std::string(client::kWindowDropped));
  EXPECT_EQ(client::ErrorMetadata(truncated, client::kFirstPosition), "96");
}

}  // namespace
}  // namespace attention::testing
