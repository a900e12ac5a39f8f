#include "attention/client/layer.h"

#include <gmock/gmock.h>

#include <cstring>
#include <filesystem>
#include <fstream>

#include "attention/client/client.h"
#include "attention/client/mocks/mock_connection.h"
#include "attention/client/safetensors.h"
#include "client/internal/convert/convert.h"

namespace attention::client {
namespace {

using ::testing::_;

LayerOptions Options(const std::vector<float>& w) {
  LayerOptions options;
  options.layer_id = "l";
  options.config = {.model_dim = 4, .num_q_heads = 2, .head_dim_qk = 2};
  const TensorView view(w, {4, 4});
  options.weights = {.w_q = view, .w_k = view, .w_v = view, .w_o = view};
  return options;
}

TEST(LayerTest, ForwardNamesItsLayer) {
  auto connection = std::make_shared<MockConnection>();
  EXPECT_CALL(*connection, CreateLayer(_, _, _))
      .WillOnce([](const auto& options, auto&, auto done) {
        EXPECT_EQ(options.layer_id, "l");
        LayerInfo info;
        info.layer_id = options.layer_id;
        done(info);
      });
  EXPECT_CALL(*connection, Forward(_, _, _)).WillOnce([](const auto& request, auto&, auto done) {
    EXPECT_EQ(request.layer_id, "l");
    EXPECT_EQ(request.x.shape, (Shape{1, 4}));
    ForwardResult result;
    result.positions = {7};
    done(result);
  });
  EXPECT_CALL(*connection, DeleteLayer("l", _, _)).WillOnce([](auto&, auto&, auto done) {
    done(absl::OkStatus());
  });
  Client client(connection);
  const std::vector<float> w(16, 1.0f);
  const auto layer = client.CreateLayer(Options(w));
  ASSERT_TRUE(layer.ok());
  const auto result = layer->Forward({.x = TensorView(std::span(w).first(4), {1, 4})});
  ASSERT_TRUE(result.ok());
  EXPECT_EQ(result->positions, std::vector<std::int64_t>{7});
  EXPECT_TRUE(layer->Delete().ok());
}

TEST(LayerTest, ATensorThatCannotBeReadIsNamed) {
  const std::vector<float> w(16);
  LayerOptions options = Options(w);
  options.weights.b_v = TensorView(nullptr, DType::kFloat32, {4});
  EXPECT_THAT(std::string(internal::ToWire(options).status().message()),
              ::testing::HasSubstr("b_v.data: null"));
}

TEST(SafetensorsTest, TensorsAreViewsOfTheFile) {
  const std::string path =
      (std::filesystem::path(::testing::TempDir()) / "layer_test.safetensors").string();
  const std::string header = R"({"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
                             R"("n":{"dtype":"I64","shape":[1],"data_offsets":[0,8]}})";
  std::string length(8, '\0');
  const std::uint64_t size = header.size();
  std::memcpy(length.data(), &size, 8);
  const float values[] = {1.5f, -2.0f};
  std::ofstream(path, std::ios::binary)
      << length << header << std::string_view(reinterpret_cast<const char*>(values), 8);
  const auto file = Safetensors::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(file->names(), (std::vector<std::string>{"n", "w"}));
  const auto w = file->Find("w");
  ASSERT_TRUE(w.ok());
  EXPECT_EQ(w->shape, Shape{2});
  EXPECT_EQ(std::memcmp(w->data, values, 8), 0);
  EXPECT_TRUE(absl::IsNotFound(file->Find("x").status()));
  EXPECT_TRUE(absl::IsInvalidArgument(file->Find("n").status()));
  const auto weights = file->FindLayer({.w_q = "w", .w_k = "w", .w_v = "w", .w_o = "w"});
  ASSERT_TRUE(weights.ok());
  EXPECT_TRUE(weights->w_o.is_present());
  EXPECT_FALSE(weights->b_o.is_present());
  std::filesystem::remove(path);
}

}  // namespace
}  // namespace attention::client
