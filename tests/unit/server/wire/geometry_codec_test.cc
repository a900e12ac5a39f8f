#include "server/wire/geometry_codec.h"

#include <gmock/gmock.h>

#include <functional>
#include <string>

namespace attention::server {
namespace {

using ::testing::HasSubstr;

v1::SessionGeometry Uniform() {
  v1::SessionGeometry wire;
  wire.set_num_layers(3);
  wire.set_num_kv_heads(2);
  wire.set_head_dim_qk(64);
  wire.set_head_dim_v(32);
  wire.set_kv_dtype(v1::DTYPE_INT8);
  wire.set_window_tokens(100);
  wire.set_sink_tokens(4);
  return wire;
}

v1::SessionGeometry Layered() {
  v1::SessionGeometry wire;
  v1::LayerShape* first = wire.add_layers();
  first->set_num_kv_heads(16);
  first->set_head_dim_qk(256);
  first->set_head_dim_v(256);
  first->set_kv_dtype(v1::DTYPE_BFLOAT16);
  first->set_window_tokens(1024);
  v1::LayerShape* second = wire.add_layers();
  second->set_num_kv_heads(1);
  second->set_head_dim_qk(576);
  second->set_head_dim_v(512);
  second->set_kv_dtype(v1::DTYPE_FLOAT32);
  second->set_value_is_key_prefix(true);
  return wire;
}

TEST(GeometryCodecTest, OneShapeForAllLayers) {
  const auto shape = DecodeGeometry(Uniform());
  ASSERT_TRUE(shape.ok()) << shape.status();
  EXPECT_TRUE(shape->is_uniform());
  EXPECT_EQ(shape->num_layers(), 3);
  EXPECT_EQ(shape->layer(2), (LayerShape{{2, 64, 32, DType::kInt8}, 100, 4}));
}

TEST(GeometryCodecTest, AShapeForEachLayer) {
  const auto shape = DecodeGeometry(Layered());
  ASSERT_TRUE(shape.ok()) << shape.status();
  EXPECT_FALSE(shape->is_uniform());
  EXPECT_EQ(shape->num_layers(), 2);
  EXPECT_EQ(shape->layer(0), (LayerShape{{16, 256, 256, DType::kBFloat16}, 1024, 0}));
  EXPECT_EQ(shape->layer(1), (LayerShape{{1, 576, 512, DType::kFloat32, true}, 0, 0}));
}

TEST(GeometryCodecTest, AnswersHaveTheFormThatWasGiven) {
  for (const v1::SessionGeometry& given : {Uniform(), Layered()}) {
    v1::SessionGeometry answer;
    EncodeGeometry(*DecodeGeometry(given), &answer);
    v1::SessionGeometry expected = given;
    if (given.layers_size() > 0) expected.set_num_layers(2);
    EXPECT_EQ(answer.SerializeAsString(), expected.SerializeAsString());
  }
}

TEST(GeometryCodecTest, TheFormsAreTheSameIfTheLayersAre) {
  v1::SessionGeometry layered;
  for (int i = 0; i < 3; ++i) {
    v1::LayerShape* layer = layered.add_layers();
    layer->set_num_kv_heads(2);
    layer->set_head_dim_qk(64);
    layer->set_head_dim_v(32);
    layer->set_kv_dtype(v1::DTYPE_INT8);
    layer->set_window_tokens(100);
    layer->set_sink_tokens(4);
  }
  EXPECT_EQ(*DecodeGeometry(layered), *DecodeGeometry(Uniform()));
  layered.mutable_layers(1)->set_sink_tokens(5);
  EXPECT_NE(*DecodeGeometry(layered), *DecodeGeometry(Uniform()));
}

struct BadForm {
  const char* name;
  std::function<void(v1::SessionGeometry&)> change;
  const char* error;
};
class BadFormTest : public ::testing::TestWithParam<BadForm> {};

TEST_P(BadFormTest, IsRefusedByName) {
  v1::SessionGeometry wire = Layered();
  GetParam().change(wire);
  const absl::Status status = DecodeGeometry(wire).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr(GetParam().error));
}

INSTANTIATE_TEST_SUITE_P(
    Fields, BadFormTest,
    ::testing::Values(
        BadForm{"NumLayers", [](auto& g) { g.set_num_layers(3); },
                "geometry.num_layers is 3, expected 0 or 2"},
        BadForm{"Heads", [](auto& g) { g.set_num_kv_heads(2); },
                "geometry.num_kv_heads is set, expected none beside geometry.layers"},
        BadForm{"KeyDim", [](auto& g) { g.set_head_dim_qk(8); }, "geometry.head_dim_qk is set"},
        BadForm{"ValueDim", [](auto& g) { g.set_head_dim_v(8); }, "geometry.head_dim_v is set"},
        BadForm{"DType", [](auto& g) { g.set_kv_dtype(v1::DTYPE_INT8); },
                "geometry.kv_dtype is set"},
        BadForm{"Latent", [](auto& g) { g.set_value_is_key_prefix(true); },
                "geometry.value_is_key_prefix is set"},
        BadForm{"Window", [](auto& g) { g.set_window_tokens(8); }, "geometry.window_tokens is set"},
        BadForm{"Sinks", [](auto& g) { g.set_sink_tokens(8); }, "geometry.sink_tokens is set"},
        BadForm{"DTypeOfLayer", [](auto& g) { g.mutable_layers(1)->clear_kv_dtype(); },
                "geometry.layers[1].kv_dtype"}),
    [](const auto& info) { return std::string(info.param.name); });

// --- What a config may see

AttentionParams Causal(std::int64_t window_left, std::int64_t sinks) {
  AttentionParams params;
  params.is_causal = true;
  params.window_left = window_left;
  params.sink_tokens = sinks;
  return params;
}

TEST(CheckWindowTest, ConfigsWithinTheWindowAreLegal) {
  const LayerShape shape{{}, 100, 4};
  EXPECT_TRUE(CheckWindow("config", Causal(99, 4), shape).ok());
  EXPECT_TRUE(CheckWindow("config", Causal(0, 0), shape).ok());
  AttentionParams bounded = Causal(99, 4);
  bounded.is_causal = false;
  bounded.window_right = 0;
  EXPECT_TRUE(CheckWindow("config", bounded, shape).ok()) << "it is as good as causal";
  EXPECT_TRUE(CheckWindow("config", AttentionParams(), LayerShape()).ok()) << "no window";
}

TEST(CheckWindowTest, ConfigsThatSeeBeyondItAreNamed) {
  const LayerShape shape{{}, 100, 4};
  const auto message = [&](const AttentionParams& params) {
    const absl::Status status = CheckWindow("config", params, shape);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  EXPECT_THAT(message(Causal(-1, 0)), HasSubstr("config.window_left is absent, expected 0 to 99"));
  EXPECT_THAT(message(Causal(100, 0)), HasSubstr("config.window_left is 100, expected 0 to 99"));
  EXPECT_THAT(message(Causal(99, 5)), HasSubstr("config.sink_tokens is 5, expected at most 4"));
  AttentionParams params = Causal(99, 4);
  params.is_causal = false;
  EXPECT_THAT(message(params), HasSubstr("config.is_causal is false, expected true"));
  params.window_right = 1;
  EXPECT_THAT(message(params), HasSubstr("config.is_causal is false"));
}

}  // namespace
}  // namespace attention::server
