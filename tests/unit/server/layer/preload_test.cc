#include "server/layer/preload.h"

#include <gmock/gmock.h>

#include "kernels/reference/reference_projection.h"
#include "proto/safetensors/safetensors_file.h"
#include "tests/support/fake_clock.h"
#include "tests/support/tensor_file.h"

namespace attention::server {
namespace {

using ::testing::HasSubstr;

class PreloadTest : public ::testing::Test {
 protected:
  static PreloadedLayer Layer(const std::string& file) {
    PreloadedLayer layer;
    layer.layer_id = "l";
    layer.file = file;
    layer.spec.model_dim = layer.spec.output_dim = 2;
    AttentionParams& params = layer.spec.attention;
    params.num_q_heads = params.num_kv_heads = 1;
    params.head_dim_qk = params.head_dim_v = 2;
    layer.tensors = {{LayerTensor::kWq, "w0"},
                     {LayerTensor::kWk, "w1"},
                     {LayerTensor::kWv, "w2"},
                     {LayerTensor::kWo, "w3"}};
    return layer;
  }

  testing::TestFolder folder_;
  FakeClock clock_;
  TenantLimitsTable tenants_;
  std::unique_ptr<ProjectionBackend> projections_ = reference::MakeReferenceProjections();
  LayerTable table_{projections_.get(), {1 << 20, 100}, clock_, tenants_};
};

TEST_F(PreloadTest, ALayerHasTheTensorsOfTheFile) {
  const PreloadedLayer wanted = Layer(folder_.WriteModel());
  ASSERT_TRUE(Preload(wanted, table_).ok());
  const auto layer = *table_.Find("default", "l");
  const LayerTensors tensors = *layer->weights->Unpack(layer->spec);
  EXPECT_EQ(LoadElement(tensors.bytes(LayerTensor::kWv).data(), DType::kFloat32, 3), 2.0f);
  EXPECT_FALSE(tensors.has(LayerTensor::kBq));
}

TEST_F(PreloadTest, ALayerIsSeenByTheTenantsThatItsEntryNames) {
  PreloadedLayer wanted = Layer(folder_.WriteModel());
  wanted.tenants = {"a", "b"};
  ASSERT_TRUE(Preload(wanted, table_).ok());
  EXPECT_TRUE(table_.Find("a", "l").ok());
  EXPECT_TRUE(table_.Find("b", "l").ok());
  EXPECT_FALSE(table_.Find("default", "l").ok());
  wanted.tenants = {"b", "c"};
  EXPECT_THAT(std::string(Preload(wanted, table_).message()),
              HasSubstr("layer_id is 'l', which is another layer's that the same tenants see"));
  wanted.tenants = {"c"};
  EXPECT_TRUE(Preload(wanted, table_).ok()) << "nobody sees both";
}

TEST_F(PreloadTest, ATypeThatIsUnknownMattersOnlyWhereItIsUsed) {
  const std::string newer = R"(,"fp4":{"dtype":"F4","shape":[2,8],"data_offsets":[0,8]})"
                            R"(,"complex":{"dtype":"C64","shape":[2],"data_offsets":[0,16]})"
                            R"(,"f8":{"dtype":"F8_E4M3","shape":[2,2],"data_offsets":[0,4]})"
                            R"(,"ids":{"dtype":"I64","shape":[2],"data_offsets":[0,16]})";
  PreloadedLayer layer = Layer(folder_.WriteModel(newer));
  EXPECT_TRUE(Preload(layer, table_).ok());
  layer.layer_id = "other";
  layer.tensors[LayerTensor::kWk] = "fp4";
  EXPECT_THAT(std::string(Preload(layer, table_).message()),
              HasSubstr("layer 'other': the tensor 'fp4' is of 'F4', expected F32, F16 or BF16"));
}

TEST_F(PreloadTest, ADTypeThatIsAskedForMustBeTheFiles) {
  PreloadedLayer layer = Layer(folder_.WriteModel());
  layer.dtype = DType::kBFloat16;
  EXPECT_THAT(std::string(Preload(layer, table_).message()),
              HasSubstr("w_q.dtype is float32, expected the layer's dtype (bfloat16)"));
  layer.dtype = DType::kFloat32;
  EXPECT_TRUE(Preload(layer, table_).ok());
}

TEST_F(PreloadTest, BrokenFilesAreRefused) {
  EXPECT_EQ(safetensors::File::Open("/nowhere").status().code(), absl::StatusCode::kNotFound);
  const auto error = [&](const std::string& path) {
    return std::string(safetensors::File::Open(path).status().message());
  };
  EXPECT_THAT(error(folder_.Write("empty", "")), HasSubstr("has 0 bytes"));
  EXPECT_THAT(error(folder_.Write("short", "abc")), HasSubstr("begins with a header of"));
  EXPECT_THAT(error(folder_.Write("huge", std::string(8, '\xff') + "x")), HasSubstr("header of"));
  EXPECT_THAT(error(folder_.WriteTensors("[]", "")), HasSubstr("no JSON object"));
  const auto entry = [&](const std::string& text) {
    return error(folder_.WriteTensors("{\"a\":" + text + "}", "12345678"));
  };
  const std::string wrong = "describes the tensor 'a' wrongly";
  EXPECT_EQ(entry(R"({"dtype":"F32","shape":[2],"data_offsets":[0,8]})"), "");
  EXPECT_THAT(entry(R"({"dtype":"F32","shape":[2],"data_offsets":[0,9]})"), HasSubstr(wrong));
  EXPECT_THAT(entry(R"({"dtype":"F4","shape":[2],"data_offsets":[0,9]})"), HasSubstr(wrong));
  EXPECT_THAT(entry(R"({"dtype":"F32","shape":[2],"data_offsets":[8,16]})"), HasSubstr(wrong));
  EXPECT_THAT(entry(R"({"dtype":"F32","shape":[-2],"data_offsets":[0,8]})"), HasSubstr(wrong));
  EXPECT_THAT(entry(R"({"dtype":"F32","shape":[9223372036854775807,8],"data_offsets":[0,8]})"),
              HasSubstr(wrong));
  EXPECT_THAT(entry("5"), HasSubstr(wrong));
}

}  // namespace
}  // namespace attention::server
