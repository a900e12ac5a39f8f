// The outputs of layers against float64: in every form, with and without sessions.
#include <future>
#include <thread>

#include "attention/client/errors.h"
#include "tests/support/layer_driver.h"

namespace attention::testing {
namespace {

class LayerTest : public ServiceFixture {
 protected:
  static v1::ForwardRequest Request(const std::string& layer_id, const v1::Tensor& x) {
    v1::ForwardRequest request;
    request.set_layer_id(layer_id);
    *request.mutable_x() = x;
    return request;
  }
  static v1::Tensor Embeddings(std::int64_t rows, std::uint32_t seed,
                               v1::DType dtype = v1::DTYPE_FLOAT32, std::int64_t columns = 48) {
    return RandomTensor(dtype, {rows, columns}, seed);
  }
  // Feeds x to a new session in chunks.
  v1::Tensor Decode(const std::string& layer_id, const v1::LayerConfig& config, const v1::Tensor& x,
                    std::int64_t chunk) {
    const v1::SessionHandle handle = MustCreateSessionFor(shared_server(), config);
    v1::Tensor y;
    for (std::int64_t row = 0; row < x.shape(0); row += chunk) {
      const std::int64_t end = std::min(x.shape(0), row + chunk);
      v1::ForwardRequest request = Request(layer_id, Rows(x, row, end));
      *request.add_sessions()->mutable_handle() = handle;
      request.mutable_sessions(0)->set_expected_position(row);
      const v1::ForwardResponse response = MustForward(shared_server(), request);
      EXPECT_EQ(response.positions_size(), 1);
      if (response.positions_size() != 1) return y;
      EXPECT_EQ(response.positions(0), end);
      AppendRows(response.output(), &y);
    }
    return y;
  }
};

struct VariantCase {
  const char* name;
  v1::DType dtype;  // of the weights
  v1::DType x_dtype;
  void (*change)(v1::LayerConfig&);
};

class LayerVariantTest : public LayerTest, public ::testing::WithParamInterface<VariantCase> {};

TEST_P(LayerVariantTest, IsAsExactAsThePlainComputation) {
  v1::LayerConfig config = SmallLayerConfig(GetParam().dtype);
  GetParam().change(config);
  const LayerCase layer = MakeLayer(config, 1);
  const std::string id = MustCreateLayer(shared_server(), layer);
  const v1::Tensor x = Embeddings(37, 2, GetParam().x_dtype);
  v1::ForwardRequest request = Request(id, x);
  LayerSequence sequence{.x = x};
  if (config.context_dim() > 0) {
    sequence.context = Embeddings(21, 3, GetParam().x_dtype, config.context_dim());
    *request.mutable_context() = *sequence.context;
  }
  const v1::ForwardResponse response = MustForward(shared_server(), request);
  EXPECT_EQ(ShapeOf(response.output()), (Shape{37, config.output_dim()}));
  EXPECT_EQ(response.output().dtype(), GetParam().x_dtype);
  EXPECT_EQ(FindMismatch(ExpectForward(layer, sequence), response.output()), "");
  EXPECT_GE(response.timing().batch_size(), 1);
}

constexpr v1::DType kF32 = v1::DTYPE_FLOAT32;
INSTANTIATE_TEST_SUITE_P(
    Variants, LayerVariantTest,
    ::testing::Values(
        VariantCase{"GroupedQuery", kF32, kF32, [](auto&) {}},
        VariantCase{"MultiHead", kF32, kF32, [](auto& c) { c.set_num_kv_heads(4); }},
        VariantCase{"MultiQuery", kF32, kF32, [](auto& c) { c.set_num_kv_heads(1); }},
        VariantCase{"NotCausal", kF32, kF32,
                    [](auto& c) { c.mutable_attention()->set_is_causal(false); }},
        VariantCase{"SlidingWindow", kF32, kF32,
                    [](auto& c) { c.mutable_attention()->set_window_left(5); }},
        VariantCase{"Rotary", kF32, kF32, [](auto& c) { c.mutable_rotary()->set_theta(500); }},
        VariantCase{"RotaryInterleavedInPart", kF32, kF32,
                    [](auto& c) {
                      c.mutable_rotary()->set_is_interleaved(true);
                      c.mutable_rotary()->set_dim(8);
                    }},
        VariantCase{"ValuesOfAnotherWidth", kF32, kF32,
                    [](auto& c) {
                      c.set_head_dim_v(24);
                      c.set_output_dim(30);
                    }},
        VariantCase{"Cross", kF32, kF32,
                    [](auto& c) {
                      c.set_context_dim(20);
                      c.mutable_attention()->set_is_causal(false);
                    }},
        VariantCase{"BFloat16", v1::DTYPE_BFLOAT16, v1::DTYPE_BFLOAT16, [](auto&) {}},
        VariantCase{"Float16", v1::DTYPE_FLOAT16, v1::DTYPE_FLOAT16, [](auto&) {}},
        VariantCase{"BFloat16WeightsFloat32Rows", v1::DTYPE_BFLOAT16, kF32, [](auto&) {}}),
    [](const auto& info) { return std::string(info.param.name); });

TEST_F(LayerTest, APromptWholeInChunksAndTokenByTokenAgreesBitwise) {
  v1::LayerConfig config = SmallLayerConfig();
  config.mutable_rotary();
  config.mutable_attention()->set_window_left(40);
  const LayerCase layer = MakeLayer(config, 3);
  const std::string id = MustCreateLayer(shared_server(), layer);
  const v1::Tensor x = Embeddings(150, 4);
  const v1::Tensor whole = MustForward(shared_server(), Request(id, x)).output();
  EXPECT_EQ(FindMismatch(ExpectForward(layer, {.x = x}), whole), "");
  for (const std::int64_t chunk : {150, 64, 7, 1}) {
    EXPECT_TRUE(SameBits(Decode(id, config, x, chunk), whole)) << "chunks of " << chunk;
  }
}

TEST_F(LayerTest, SequencesOfACallHaveTheBitsTheyHaveAlone) {
  const LayerCase layer = MakeLayer(SmallLayerConfig(), 5);
  const std::string id = MustCreateLayer(shared_server(), layer);
  const std::vector<std::int64_t> lens = {3, 0, 40, 1, 17};
  v1::Tensor x;
  std::vector<v1::Tensor> alone;
  for (std::size_t i = 0; i < lens.size(); ++i) {
    const v1::Tensor rows = Embeddings(lens[i], 10 + i);
    AppendRows(rows, &x);
    alone.push_back(MustForward(shared_server(), Request(id, rows)).output());
  }
  v1::ForwardRequest request = Request(id, x);
  for (const std::int64_t len : lens) request.add_x_lens(len);
  const v1::Tensor together = MustForward(shared_server(), request).output();
  std::int64_t row = 0;
  for (std::size_t i = 0; i < lens.size(); row += lens[i++]) {
    EXPECT_EQ(Rows(together, row, row + lens[i]).data(), alone[i].data()) << "sequence " << i;
  }
}

TEST_F(LayerTest, PaddingOfADenseBatchNeverMatters) {
  const LayerCase layer = MakeLayer(SmallLayerConfig(), 6);
  const std::string id = MustCreateLayer(shared_server(), layer);
  v1::Tensor x = RandomTensor(v1::DTYPE_FLOAT32, {2, 9, 48}, 7);
  for (std::int64_t i = (9 + 4) * 48; i < 18 * 48; ++i) SetElement(&x, i, NAN);
  v1::ForwardRequest request = Request(id, x);
  request.add_x_lens(9);
  request.add_x_lens(4);
  const v1::Tensor y = MustForward(shared_server(), request).output();
  ASSERT_EQ(ShapeOf(y), (Shape{2, 9, 48}));
  v1::Tensor second = Embeddings(4, 0);
  second.set_data(x.data().substr(9 * 48 * 4, 4 * 48 * 4));
  EXPECT_EQ(FindMismatch(ExpectForward(layer, {.x = second}), y, 9), "");
  for (std::int64_t i = (9 + 4) * 48; i < 18 * 48; ++i) EXPECT_EQ(ElementAt(y, i), 0) << i;
}

TEST_F(LayerTest, MaskedPaddingOnTheLeftNeverMatters) {
  v1::LayerConfig config = SmallLayerConfig();
  config.mutable_attention()->set_is_causal(false);
  const LayerCase layer = MakeLayer(config, 8);
  const std::string id = MustCreateLayer(shared_server(), layer);
  v1::Tensor x = Embeddings(6, 9);
  for (std::int64_t i = 0; i < 2 * 48; ++i) SetElement(&x, i, NAN);
  v1::ForwardRequest request = Request(id, x);
  *request.mutable_padding_mask() = ZeroTensor(v1::DTYPE_BOOL, {6});
  request.mutable_padding_mask()->set_data(std::string("\0\0\1\1\1\1", 6));
  const v1::Tensor y = MustForward(shared_server(), request).output();
  EXPECT_EQ(FindMismatch(ExpectForward(layer, {.x = Rows(x, 2, 6)}), y, 2), "");
  for (std::int64_t i = 0; i < 2 * 48; ++i) EXPECT_EQ(ElementAt(y, i), 0) << i;
}

TEST_F(LayerTest, PaddingMasksOfADenseBatchBroadcast) {
  v1::LayerConfig config = SmallLayerConfig();
  config.mutable_attention()->set_is_causal(false);
  const std::string id = MustCreateLayer(shared_server(), MakeLayer(config, 8));
  v1::ForwardRequest request = Request(id, RandomTensor(v1::DTYPE_FLOAT32, {2, 5, 48}, 9));
  const auto forward = [&](const Shape& shape, const std::string& mask) {
    *request.mutable_padding_mask() = ZeroTensor(v1::DTYPE_BOOL, shape);
    request.mutable_padding_mask()->set_data(mask);
    return MustForward(shared_server(), request).output();
  };
  const v1::Tensor each = forward({2, 5}, std::string("\0\1\1\0\1\0\1\1\0\1", 10));
  EXPECT_TRUE(SameBits(forward({1, 5}, std::string("\0\1\1\0\1", 5)), each));
  EXPECT_TRUE(SameBits(forward({2, 1, 1, 5}, std::string("\0\1\1\0\1\0\1\1\0\1", 10)), each));
  const v1::Tensor one = forward({2, 5}, std::string("\0\0\0\0\0\1\1\1\1\1", 10));
  EXPECT_TRUE(SameBits(forward({2, 1}, std::string("\0\1", 2)), one));
}

TEST_F(LayerTest, NoRowsGiveAnOutputOfNoRows) {
  const std::string id = MustCreateLayer(shared_server(), MakeLayer(SmallLayerConfig(), 8));
  for (const Shape& shape : {Shape{0, 48}, Shape{2, 0, 48}}) {
    const v1::ForwardRequest request = Request(id, ZeroTensor(v1::DTYPE_FLOAT32, shape));
    const v1::ForwardResponse response = MustForward(shared_server(), request);
    ASSERT_TRUE(response.has_output());
    EXPECT_EQ(ShapeOf(response.output()), shape);
  }
}

TEST_F(LayerTest, AContextIsEncodedOnceAndServesEveryStep) {
  v1::LayerConfig config = SmallLayerConfig();
  config.set_context_dim(20);
  config.mutable_attention()->set_is_causal(false);
  const LayerCase layer = MakeLayer(config, 11);
  const std::string id = MustCreateLayer(shared_server(), layer);
  const v1::Tensor context = Embeddings(30, 12, kF32, 20);
  const v1::Tensor x = Embeddings(5, 13);

  v1::ForwardRequest encode;
  encode.set_layer_id(id);
  *encode.mutable_context() = context;
  *encode.add_sessions()->mutable_handle() = MustCreateSessionFor(shared_server(), config);
  encode.mutable_sessions(0)->set_layer(1);
  encode.mutable_sessions(0)->set_expected_position(0);
  const v1::ForwardResponse encoded = MustForward(shared_server(), encode);
  EXPECT_FALSE(encoded.has_output());
  EXPECT_EQ(encoded.positions(0), 30);

  v1::ForwardRequest each_time = Request(id, x);
  *each_time.mutable_context() = context;
  const v1::Tensor whole = MustForward(shared_server(), each_time).output();
  EXPECT_EQ(FindMismatch(ExpectForward(layer, {.x = x, .context = context}), whole), "");
  v1::Tensor stepwise;
  for (std::int64_t row = 0; row < 5; ++row) {
    v1::ForwardRequest step = Request(id, Rows(x, row, row + 1));
    *step.add_sessions() = encode.sessions(0);
    step.mutable_sessions(0)->clear_expected_position();
    AppendRows(MustForward(shared_server(), step).output(), &stepwise);
  }
  EXPECT_TRUE(SameBits(stepwise, whole));
}

TEST_F(LayerTest, ARetriedCallAppendsNothingAndAnswersTheSame) {
  v1::LayerConfig config = SmallLayerConfig();
  config.mutable_rotary();
  const std::string id = MustCreateLayer(shared_server(), MakeLayer(config, 14));
  v1::ForwardRequest request = Request(id, Embeddings(6, 15));
  *request.add_sessions()->mutable_handle() = MustCreateSessionFor(shared_server(), config);
  request.mutable_sessions(0)->set_expected_position(0);
  const v1::ForwardResponse first = MustForward(shared_server(), request);
  const v1::ForwardResponse again = MustForward(shared_server(), request);
  EXPECT_TRUE(SameBits(first.output(), again.output()));
  EXPECT_EQ(again.positions(0), 6);

  v1::ForwardResponse none;
  const v1::Tensor rows = request.x();
  *request.mutable_x() = Embeddings(6, 16);
  EXPECT_THAT(Forward(shared_server(), request, &none),
              FailsBecause(grpc::FAILED_PRECONDITION, "POSITION_MISMATCH"))
      << "other rows are no repetition";
  *request.mutable_x() = rows;
  request.set_layer_id(MustCreateLayer(shared_server(), MakeLayer(config, 15)));
  EXPECT_THAT(Forward(shared_server(), request, &none),
              FailsBecause(grpc::FAILED_PRECONDITION, "POSITION_MISMATCH"))
      << "nor is another layer";
  request.set_layer_id(id);

  request.mutable_sessions(0)->set_expected_position(9);
  const grpc::Status gap = Forward(shared_server(), request, &none);
  EXPECT_THAT(gap, FailsBecause(grpc::FAILED_PRECONDITION, "POSITION_MISMATCH"));
  EXPECT_THAT(gap, FailsWith(grpc::FAILED_PRECONDITION, "sessions[0]: expected_position is 9"));
  EXPECT_EQ(DetailsOf(gap).metadata["actual_position"], "6");
}

TEST_F(LayerTest, ConcurrentCallersGetTheBitsTheyGetAlone) {
  const std::string id = MustCreateLayer(shared_server(), MakeLayer(SmallLayerConfig(), 16));
  std::vector<v1::Tensor> alone(8);
  for (std::size_t i = 0; i < alone.size(); ++i) {
    alone[i] = MustForward(shared_server(), Request(id, Embeddings(3 + i, 20 + i))).output();
  }
  std::vector<std::thread> callers;
  for (std::size_t i = 0; i < alone.size(); ++i) {
    callers.emplace_back([&, i] {
      for (int round = 0; round < 20; ++round) {
        const auto response = MustForward(shared_server(), Request(id, Embeddings(3 + i, 20 + i)));
        EXPECT_TRUE(SameBits(response.output(), alone[i]));
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
}

TEST_F(LayerTest, NaNWeightsStayInTheirLayer) {
  LayerCase layer = MakeLayer(SmallLayerConfig(), 30);
  SetElement(&layer.tensors[v1::LAYER_TENSOR_NAME_W_O], 0, NAN);
  const std::string id = MustCreateLayer(shared_server(), layer);
  const v1::Tensor y = MustForward(shared_server(), Request(id, Embeddings(2, 31))).output();
  for (std::int64_t i = 0; i < NumElements(y); ++i) {
    EXPECT_EQ(std::isnan(ElementAt(y, i)), i % 48 == 0) << i;
  }
  ExpectServes(shared_server());
}

// An upload of a layer of SmallLayerConfig's dims, whose tensors must live on.
client::LayerOptions SdkOptions(const LayerCase& layer, const client::RotaryConfig& rotary) {
  const auto view = [&](v1::LayerTensorName name) {
    const v1::Tensor& tensor = layer.tensors.at(name);
    return client::TensorView(tensor.data().data(), client::DType::kFloat32, ShapeOf(tensor));
  };
  client::LayerOptions options;
  options.config = {.model_dim = 48,
                    .num_q_heads = 4,
                    .num_kv_heads = 2,
                    .head_dim_qk = 16,
                    .attention = {.is_causal = true},
                    .rotary = rotary};
  options.weights = {.w_q = view(v1::LAYER_TENSOR_NAME_W_Q),
                     .w_k = view(v1::LAYER_TENSOR_NAME_W_K),
                     .w_v = view(v1::LAYER_TENSOR_NAME_W_V),
                     .w_o = view(v1::LAYER_TENSOR_NAME_W_O),
                     .b_q = view(v1::LAYER_TENSOR_NAME_B_Q),
                     .b_k = view(v1::LAYER_TENSOR_NAME_B_K),
                     .b_v = view(v1::LAYER_TENSOR_NAME_B_V),
                     .b_o = view(v1::LAYER_TENSOR_NAME_B_O)};
  return options;
}

TEST_F(LayerTest, TheSdkSaysEveryKindOfRotaryScaling) {
  const LayerCase layer = MakeLayer(SmallLayerConfig(), 52);
  const auto client = shared_server().NewClient();
  const client::RotaryConfig yarn{.scaling = client::RotaryScaling::kYarn,
                                  .factor = 32,
                                  .original_max_positions = 4096,
                                  .truncate = false};
  const client::RotaryConfig custom{.scaling = client::RotaryScaling::kCustom,
                                    .attention_factor = 1.25,
                                    .inv_freq = {1, 0.5, 0.25, 0.1, 0.01, 0.001, 1e-4, 0}};
  for (const client::RotaryConfig& rotary : {yarn, custom}) {
    const auto created = client->CreateLayer(SdkOptions(layer, rotary));
    ASSERT_TRUE(created.ok()) << created.status();
    const client::RotaryConfig& held = *created->info().config.rotary;
    EXPECT_EQ(held.scaling, rotary.scaling);
    EXPECT_EQ(held.truncate, rotary.scaling != client::RotaryScaling::kYarn);
    EXPECT_EQ(held.inv_freq, rotary.inv_freq);
    EXPECT_TRUE(created->Delete().ok());
  }
}

TEST_F(LayerTest, TheSdkMakesCallsAndConvertsLayers) {
  v1::LayerConfig config = SmallLayerConfig();
  config.mutable_rotary()->set_theta(500);
  const LayerCase layer = MakeLayer(config, 50);
  const auto client = shared_server().NewClient();
  const auto created = client->CreateLayer(SdkOptions(layer, {.theta = 500}));
  ASSERT_TRUE(created.ok()) << created.status();
  EXPECT_EQ(created->info().config.rotary->theta, 500);
  EXPECT_EQ(created->info().config.output_dim, 48);
  EXPECT_EQ(created->info().sha256.size(), 32u);
  const v1::Tensor x = Embeddings(7, 51);
  const client::ForwardRequest request{.x = {x.data().data(), client::DType::kFloat32, {7, 48}}};
  const auto plain = created->Forward(request);
  ASSERT_TRUE(plain.ok()) << plain.status();
  const v1::Tensor expected = MustForward(shared_server(), Request(created->id(), x)).output();
  EXPECT_EQ(plain->output.bytes(), expected.data());
  EXPECT_EQ(FindMismatch(ExpectForward(layer, {.x = x}), expected), "");
  EXPECT_EQ(created->ForwardFuture(request).get()->output.bytes(), expected.data());
  std::promise<std::string> async;
  created->ForwardAsync(request, {}, [&](const absl::StatusOr<client::ForwardResult>& result) {
    async.set_value(std::string(result->output.bytes()));
  });
  EXPECT_EQ(async.get_future().get(), expected.data());

  auto session = client->CreateSession(
      {.geometry = {.num_layers = 1, .num_kv_heads = 2, .head_dim_qk = 16, .head_dim_v = 16}});
  ASSERT_TRUE(session.ok());
  client::ForwardRequest stepwise = request;
  stepwise.sessions = {{.handle = session->handle(), .expected_position = 0}};
  const auto stepped = created->Forward(stepwise);
  ASSERT_TRUE(stepped.ok()) << stepped.status();
  EXPECT_EQ(stepped->output.bytes(), expected.data());
  EXPECT_EQ(stepped->positions, std::vector<std::int64_t>{7});

  const auto converted =
      client->ConvertLayer({.source_layer_id = created->id(), .num_kv_heads = 1});
  ASSERT_TRUE(converted.ok()) << converted.status();
  EXPECT_EQ(converted->info().config.num_kv_heads, 1);
  EXPECT_EQ(client->GetLayer(created->id())->info().sha256, created->info().sha256);
  EXPECT_GE(client->ListLayers()->layers.size(), 2u);
  EXPECT_TRUE(created->Delete().ok());
  EXPECT_TRUE(client->DeleteLayer(converted->id()).ok());
  EXPECT_EQ(client::ErrorReason(created->Forward(request).status()),
            std::string(client::kLayerNotFound));
}

// The layer with its KV heads averaged here, independently of the server, for the oracle to read.
LayerCase Pooled(const LayerCase& source, int num_kv_heads) {
  LayerCase pooled = source;
  pooled.config.set_num_kv_heads(num_kv_heads);
  const int group = source.config.num_kv_heads() / num_kv_heads;
  for (const auto name : {v1::LAYER_TENSOR_NAME_W_K, v1::LAYER_TENSOR_NAME_W_V,
                          v1::LAYER_TENSOR_NAME_B_K, v1::LAYER_TENSOR_NAME_B_V}) {
    const v1::Tensor& from = source.tensors.at(name);
    const Shape shape = LayerTensorShape(pooled.config, name);
    v1::Tensor to = ZeroTensor(from.dtype(), shape);
    const std::int64_t head = NumElements(from) / source.config.num_kv_heads();
    for (std::int64_t i = 0; i < NumElements(to); ++i) {
      double mean = 0;
      for (int member = 0; member < group; ++member) {
        mean += ElementAt(from, (i / head * group + member) * head + i % head);
      }
      SetElement(&to, i, static_cast<float>(mean / group));
    }
    pooled.tensors[name] = to;
  }
  return pooled;
}

TEST_F(LayerTest, ConversionAveragesTheHeadsOfAGroup) {
  v1::LayerConfig config = SmallLayerConfig();
  config.set_num_kv_heads(4);
  const LayerCase source = MakeLayer(config, 40);
  MustCreateLayer(shared_server(), source, "convert/source");
  const v1::Tensor x = Embeddings(9, 41);
  for (const int heads : {1, 2, 4}) {
    v1::ConvertLayerRequest request;
    request.set_source_layer_id("convert/source");
    request.set_num_kv_heads(heads);
    v1::ConvertLayerResponse response;
    const grpc::Status status =
        LayerStub(shared_server())->ConvertLayer(NewContext().get(), request, &response);
    ASSERT_TRUE(status.ok()) << status.error_message();
    EXPECT_EQ(response.layer().config().num_kv_heads(), heads);
    const v1::Tensor y =
        MustForward(shared_server(), Request(response.layer().layer_id(), x)).output();
    EXPECT_EQ(FindMismatch(ExpectForward(Pooled(source, heads), {.x = x}), y), "");
    if (heads == 4) {
      EXPECT_TRUE(SameBits(y, MustForward(shared_server(), Request("convert/source", x)).output()))
          << "as many heads as before is the identity";
    }
  }
}

}  // namespace
}  // namespace attention::testing
