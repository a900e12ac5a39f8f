#include "server/wire/preload_file.h"

#include <gmock/gmock.h>

#include "tests/support/tensor_file.h"

namespace attention::server {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class PreloadFileTest : public ::testing::Test {
 protected:
  // A file of one layer, the keys of which are on line 3, and `more` on line 2.
  static std::string Layer(const std::string& more = "") {
    return "{\"layers\":[\n{" + more + "\n" +
           R"("layer_id":"l","file":"model.safetensors","model_dim":8,"num_q_heads":2,)"
           R"("head_dim_qk":4,"tensors":{"w_q":"a","w_k":"b","w_v":"c","w_o":"d"}}]})";
  }
  absl::StatusOr<std::vector<PreloadedLayer>> Read(const std::string& json) {
    return ReadPreloadFile(folder_.Write("layers.json", json));
  }
  std::string ErrorOf(const std::string& json) {
    const absl::Status status = Read(json).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    return std::string(status.message());
  }

  testing::TestFolder folder_;
};

TEST_F(PreloadFileTest, ALayerSaysWhatACallMaySay) {
  const auto layers = Read(Layer(
      R"("tenants":["t","u"],"dtype":"DTYPE_BFLOAT16","is_causal":true,"soft_cap":30,"window_left":9,)"
      R"("sink_logits":[0.5,-1],"alibi_slopes":[1,0.25],)"
      R"("rotary":{"theta":500,"dim":4,"yarn":{"factor":8,"original_max_positions":4096,)"
      R"("truncate":false}},)"));
  ASSERT_TRUE(layers.ok()) << layers.status();
  ASSERT_EQ(layers->size(), 1u);
  const PreloadedLayer& layer = layers->front();
  EXPECT_THAT(layer.tenants, ElementsAre("t", "u"));
  EXPECT_EQ(layer.layer_id, "l");
  EXPECT_THAT(layer.file, HasSubstr("/model.safetensors"));
  EXPECT_EQ(layer.tensors.at(LayerTensor::kWv), "c");
  EXPECT_EQ(layer.dtype, DType::kBFloat16);
  const LayerSpec& spec = layer.spec;
  EXPECT_EQ(spec.output_dim, 8);
  EXPECT_TRUE(spec.attention.is_causal);
  EXPECT_EQ(spec.attention.soft_cap, 30);
  EXPECT_EQ(spec.attention.window_left, 9);
  EXPECT_THAT(spec.sink_logits, ElementsAre(0.5f, -1.0f));
  EXPECT_THAT(spec.alibi_slopes, ElementsAre(1.0f, 0.25f));
  EXPECT_EQ(spec.rotary->theta, 500);
  EXPECT_EQ(spec.rotary->scaling, RotaryScaling::kYarn);
  EXPECT_EQ(spec.rotary->beta_fast, 32);
  EXPECT_FALSE(spec.rotary->truncate);
}

TEST_F(PreloadFileTest, FrequenciesMayBeGivenOneByOne) {
  const auto layers =
      Read(Layer(R"("rotary":{"custom":{"inv_freq":[1,0.01],"attention_factor":1.2}},)"));
  ASSERT_TRUE(layers.ok()) << layers.status();
  const RotaryParams& rotary = *layers->front().spec.rotary;
  EXPECT_EQ(rotary.scaling, RotaryScaling::kCustom);
  EXPECT_THAT(rotary.inv_freq, ElementsAre(1, 0.01));
  EXPECT_EQ(rotary.attention_factor, 1.2);
}

TEST_F(PreloadFileTest, WhatIsWrongIsNamedWithItsLine) {
  const std::pair<const char*, const char*> cases[] = {
      {R"("head_dim":3,)", "layers.json:2: layers[0].head_dim is unknown"},
      {R"("attention":{},)", "layers.json:2: layers[0].attention is unknown"},
      {R"("output_dim":4294967304,)",
       "layers.json:2: layers[0].output_dim is 4294967304, expected int32"},
      {R"("output_dim":1.5,)", "layers[0].output_dim is 1.5, expected int32"},
      {R"("output_dim":[8],)", "layers[0].output_dim is [8], expected int32"},
      {R"("output_dim":{},)", "layers[0].output_dim is {}, expected int32"},
      {R"("output_dim":-8,)", "layers.json:2: layers[0].output_dim is -8, expected 1 to 65536"},
      {R"("soft_cap":"x",)", "layers.json:2: layers[0].soft_cap is \"x\", expected float"},
      {R"("soft_cap":-1,)", "layers.json:2: layers[0].soft_cap is -1, expected 0 (none)"},
      {R"("is_causal":1,)", "layers[0].is_causal is 1, expected bool"},
      {R"("dtype":"F32",)", "layers[0].dtype is \"F32\", expected DType"},
      {R"("window_left":-1,)", "layers.json:2: layers[0].window_left is -1, expected 0 to"},
      {R"("sink_logits":3,)", "layers[0].sink_logits is 3, expected a list of numbers"},
      {R"("sink_logits":[1],)", "layers.json:2: layers[0].sink_logits is DTYPE_FLOAT32 [1]"},
      {R"("alibi_slopes":[1,1e300],)", "layers[0].alibi_slopes[1] is inf, expected a finite"},
      {R"("num_kv_heads":3,)", "layers.json:3: layers[0].num_q_heads is 2, expected a multiple"},
      {R"("rotary":7,)", "layers.json:2: layers[0].rotary is 7, expected an object"},
      {R"("rotary":{"dim":3},)", "layers.json:2: layers[0].rotary.dim is 3, expected an even"},
      {R"("rotary":{"linear":{"factr":2}},)", "layers[0].rotary.linear.factr is unknown"},
      {R"("rotary":{"linear":{"factor":2},"yarn":{}},)",
       "layers[0].rotary.yarn is a second scaling, expected at most one"},
      {R"("rotary":{"custom":{"inv_freq":[1]}},)", "rotary.custom.inv_freq has 1 entries"},
      {R"("rotary":{"custom":{"inv_freq":[1,"x"]}},)",
       R"(rotary.custom.inv_freq is [1,"x"], expected a list of double)"},
      {R"("tenants":"t",)", R"(layers.json:2: layers[0].tenants is "t", expected a list of)"},
      {R"("tenants":[],)", "layers[0].tenants is [], expected a list of tenants' names"},
      {R"("tenants":[""],)", R"(layers[0].tenants[0] is "", expected a string)"},
      {R"("tenants":["a\nb"],)", "layers[0].tenants[0] has 3 bytes, expected 1 to 128 printable"},
      {R"("tenants":["a","b","a"],)", R"(layers[0].tenants[2] is "a", expected each tenant once)"},
      {R"("model_dim":8,)", "layers.json:3: layers[0].model_dim is there twice"},
      {R"("output_dim":,)", "layers.json:2: expected JSON: "},
  };
  for (const auto& [more, message] : cases) EXPECT_THAT(ErrorOf(Layer(more)), HasSubstr(message));
}

TEST_F(PreloadFileTest, WhatIsMissingIsNamed) {
  EXPECT_THAT(ErrorOf("{"), HasSubstr("layers.json:1: expected JSON"));
  EXPECT_THAT(ErrorOf("{}"), HasSubstr("expected a JSON object with a list named layers"));
  EXPECT_THAT(ErrorOf(R"({"layers":[],"layer":[]})"), HasSubstr("layer is unknown"));
  EXPECT_THAT(ErrorOf("{\"layers\":[\n\n5]}"), HasSubstr("layers[0] is 5, expected an object"));
  EXPECT_THAT(ErrorOf("{\"layers\":[\n\n{}]}"),
              HasSubstr("layers.json:3: layers[0].layer_id is missing"));
  EXPECT_THAT(ErrorOf(R"({"layers":[{"layer_id":"a b","file":"f"}]})"),
              HasSubstr("layers[0].layer_id is 'a b', expected at most 128 of"));
  EXPECT_THAT(ErrorOf(R"({"layers":[{"layer_id":"l","file":"f","tensors":{"w_x":"a"}}]})"),
              HasSubstr("layers[0].tensors.w_x is unknown, expected w_q"));
  EXPECT_EQ(ReadPreloadFile("/nowhere.json").status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace attention::server
