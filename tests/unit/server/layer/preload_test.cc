#include <gmock/gmock.h>

#include <cstring>
#include <filesystem>
#include <fstream>

#include "kernels/reference/reference_projection.h"
#include "proto/safetensors/safetensors_file.h"
#include "server/layer/preload_file.h"
#include "tests/support/fake_clock.h"

namespace attention::server {
namespace {

using ::testing::HasSubstr;

// Files in a folder of the test's own.
class PreloadTest : public ::testing::Test {
 protected:
  PreloadTest() { std::filesystem::create_directories(folder_); }
  ~PreloadTest() override { std::filesystem::remove_all(folder_); }

  std::string Write(const std::string& name, const std::string& text) {
    const std::string path = (folder_ / name).string();
    std::ofstream(path, std::ios::binary) << text;
    return path;
  }
  // A file of the format, by hand.
  std::string WriteTensors(const std::string& header, const std::string& data) {
    std::string length(8, '\0');
    const std::uint64_t size = header.size();
    std::memcpy(length.data(), &size, 8);
    return Write("model.safetensors", length + header + data);
  }
  // Four 2 x 2 matrices of float32, the i-th full of i.
  std::string WriteModel() {
    std::string header = R"({"__metadata__":{"format":"pt"})";
    std::string data;
    for (int i = 0; i < 4; ++i) {
      header += ",\"w" + std::to_string(i) + R"(":{"dtype":"F32","shape":[2,2],"data_offsets":[)" +
                std::to_string(16 * i) + "," + std::to_string(16 * i + 16) + "]}";
      for (int element = 0; element < 4; ++element) {
        const auto value = static_cast<float>(i);
        data.append(reinterpret_cast<const char*>(&value), 4);
      }
    }
    return WriteTensors(header + "}", data);
  }
  static std::string Layer(const std::string& more = "") {
    return R"({"layers":[{"layer_id":"l","file":"model.safetensors","model_dim":2,"num_q_heads":1,)"
           R"("head_dim_qk":2,"is_causal":true,)" +
           more + R"("tensors":{"w_q":"w0","w_k":"w1","w_v":"w2","w_o":"w3"}}]})";
  }
  std::string ErrorOf(const std::string& json) {
    const auto layers = ReadPreloadFile(Write("layers.json", json));
    if (!layers.ok()) return std::string(layers.status().message());
    for (const PreloadedLayer& layer : *layers) {
      const absl::Status status = Preload(layer, table_);
      if (!status.ok()) return std::string(status.message());
    }
    return "";
  }

  const std::filesystem::path folder_ =
      std::filesystem::path(::testing::TempDir()) /
      ::testing::UnitTest::GetInstance()->current_test_info()->name();
  FakeClock clock_;
  std::unique_ptr<ProjectionBackend> projections_ = reference::MakeReferenceProjections();
  LayerTable table_{projections_.get(), {1 << 20, 100}, clock_};
};

TEST_F(PreloadTest, ALayerIsThereAsTheFileHasIt) {
  WriteModel();
  ASSERT_EQ(ErrorOf(Layer(R"("tenant":"t","rotary":{"theta":500,"llama3":{"factor":8,)"
                          R"("low_freq_factor":1,"high_freq_factor":4,)"
                          R"("original_max_positions":8192}},)")),
            "");
  const auto layer = *table_.Find("t", "l");
  EXPECT_TRUE(layer->spec.attention.is_causal);
  EXPECT_EQ(layer->spec.output_dim, 2);
  EXPECT_EQ(layer->spec.rotary->theta, 500);
  EXPECT_EQ(layer->spec.rotary->scaling, RotaryScaling::kLlama3);
  const LayerTensors tensors = *layer->weights->Unpack(layer->spec);
  EXPECT_EQ(LoadElement(tensors.bytes(LayerTensor::kWv).data(), DType::kFloat32, 3), 2.0f);
  EXPECT_FALSE(tensors.has(LayerTensor::kBq));
}

TEST_F(PreloadTest, WhatIsWrongIsNamed) {
  WriteModel();
  EXPECT_THAT(ErrorOf("{"), HasSubstr("expected a JSON object with a list named layers"));
  EXPECT_THAT(ErrorOf(Layer(R"("head_dim":3,)")), HasSubstr("layers[0]: the key 'head_dim'"));
  EXPECT_THAT(ErrorOf(Layer(R"("soft_cap":"x",)")), HasSubstr("soft_cap is \"x\", which has the"));
  EXPECT_THAT(ErrorOf(Layer(R"("rotary":{"dim":3},)")), HasSubstr("layer 'l': rotary.dim is 3"));
  EXPECT_THAT(ErrorOf(Layer(R"("rotary":{"linear":{"factor":2},"yarn":{}},)")),
              HasSubstr("expected at most one"));
  EXPECT_THAT(ErrorOf(Layer(R"("context_dim":3,)")),
              HasSubstr("layer 'l': w_k.shape is [2, 2], expected [2, 3]"));
  std::string missing = Layer();
  missing.replace(missing.find("\"w3\""), 4, "\"w9\"");
  EXPECT_THAT(ErrorOf(missing), HasSubstr("has no tensor 'w9'"));
  EXPECT_EQ(ReadPreloadFile("/nowhere.json").status().code(), absl::StatusCode::kNotFound);
}

TEST_F(PreloadTest, BrokenFilesAreRefused) {
  EXPECT_EQ(safetensors::File::Open("/nowhere").status().code(), absl::StatusCode::kNotFound);
  const auto error = [&](const std::string& path) {
    return std::string(safetensors::File::Open(path).status().message());
  };
  EXPECT_THAT(error(Write("empty", "")), HasSubstr("has 0 bytes"));
  EXPECT_THAT(error(Write("short", "abc")), HasSubstr("begins with a header of"));
  EXPECT_THAT(error(Write("huge", std::string(8, '\xff') + "x")), HasSubstr("header of"));
  EXPECT_THAT(error(WriteTensors("[]", "")), HasSubstr("no JSON object"));
  const auto entry = [&](const std::string& text) {
    return error(WriteTensors("{\"a\":" + text + "}", "12345678"));
  };
  const std::string wrong = "describes the tensor 'a' wrongly";
  EXPECT_EQ(entry(R"({"dtype":"F32","shape":[2],"data_offsets":[0,8]})"), "");
  EXPECT_THAT(entry(R"({"dtype":"F32","shape":[2],"data_offsets":[0,9]})"), HasSubstr(wrong));
  EXPECT_THAT(entry(R"({"dtype":"F32","shape":[2],"data_offsets":[8,16]})"), HasSubstr(wrong));
  EXPECT_THAT(entry(R"({"dtype":"F32","shape":[-2],"data_offsets":[0,8]})"), HasSubstr(wrong));
  EXPECT_THAT(entry(R"({"dtype":"F32","shape":[9223372036854775807,8],"data_offsets":[0,8]})"),
              HasSubstr(wrong));
  EXPECT_THAT(entry("5"), HasSubstr(wrong));
}

}  // namespace
}  // namespace attention::server
