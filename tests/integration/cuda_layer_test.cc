// Layers on GPUs, through the service: two devices whose kernels and products the host executes,
// each with the weights in memory of its own.
#include <future>

#include "kernels/cuda/cuda_backend.h"
#include "tests/simt/simt_device.h"
#include "tests/support/layer_driver.h"

namespace attention::testing {
namespace {

constexpr int kDevices = 2;

class CudaLayerTest : public ::testing::Test {
 protected:
  static void Configure(server::ServerConfig& config) {
    config.workers = kDevices;
    config.threads = kDevices;  // also where there are fewer CPUs
  }

  absl::StatusOr<std::unique_ptr<AttentionBackend>> NewBackend() {
    const std::uint32_t seed = ++num_made_;
    return cuda::MakeCudaBackend(
        simt::MakeSimtDevice(seed),
        {.packing_device = has_projections_ ? simt::MakeSimtDevice(1000 + seed) : nullptr,
         .projections = {.block_rows = {4, 8, 32}}});
  }

  static v1::ForwardRequest Request(const std::string& layer_id, const v1::Tensor& x) {
    v1::ForwardRequest request;
    request.set_layer_id(layer_id);
    *request.mutable_x() = x;
    return request;
  }

  bool has_projections_ = true;
  std::atomic<std::uint32_t> num_made_{0};
};

TEST_F(CudaLayerTest, IsAsExactAsThePlainComputationOnEachDevice) {
  TestServer server(Configure, [this](auto&&...) { return NewBackend(); });
  for (const v1::DType dtype : {v1::DTYPE_FLOAT32, v1::DTYPE_FLOAT16, v1::DTYPE_BFLOAT16}) {
    v1::LayerConfig config = SmallLayerConfig(dtype);
    config.mutable_rotary()->set_theta(500);
    const LayerCase layer = MakeLayer(config, 1);
    const std::string id = MustCreateLayer(server, layer);
    const v1::Tensor x = RandomTensor(dtype, {20, 48}, 2);
    const LayerExpectation expected = ExpectForward(layer, {.x = x});
    // At once, so that both devices have some.
    std::vector<std::future<v1::ForwardResponse>> responses;
    for (int i = 0; i < 3 * kDevices; ++i) {
      responses.push_back(
          std::async(std::launch::async, [&] { return MustForward(server, Request(id, x)); }));
    }
    std::vector<v1::Tensor> outputs;
    for (auto& response : responses) outputs.push_back(response.get().output());
    for (const v1::Tensor& output : outputs) {
      EXPECT_EQ(FindMismatch(expected, output), "");
      EXPECT_EQ(output.data(), outputs[0].data()) << "of whichever device, in whichever company";
    }
  }
}

TEST_F(CudaLayerTest, ASequenceHasTheBitsItHasAloneAndStepByStep) {
  TestServer server(Configure, [this](auto&&...) { return NewBackend(); });
  const v1::LayerConfig config = SmallLayerConfig(v1::DTYPE_BFLOAT16);
  const std::string id = MustCreateLayer(server, MakeLayer(config, 3));
  const v1::Tensor x = RandomTensor(v1::DTYPE_BFLOAT16, {23, 48}, 4);
  const v1::Tensor alone = MustForward(server, Request(id, x)).output();
  v1::Tensor both = RandomTensor(v1::DTYPE_BFLOAT16, {9, 48}, 5);
  AppendRows(x, &both);
  v1::ForwardRequest request = Request(id, both);
  request.add_x_lens(9);
  request.add_x_lens(23);
  const v1::Tensor together = MustForward(server, request).output();
  EXPECT_EQ(Rows(together, 9, 32).data(), alone.data());

  const v1::SessionHandle handle = MustCreateSessionFor(server, config);
  v1::Tensor stepped;
  for (std::int64_t row = 0; row < 23; row += 5) {
    request = Request(id, Rows(x, row, std::min<std::int64_t>(23, row + 5)));
    *request.add_sessions()->mutable_handle() = handle;
    request.mutable_sessions(0)->set_expected_position(row);
    AppendRows(MustForward(server, request).output(), &stepped);
  }
  EXPECT_TRUE(SameBits(stepped, alone));
}

TEST_F(CudaLayerTest, WeightsAreReadBackForAConversion) {
  TestServer server(Configure, [this](auto&&...) { return NewBackend(); });
  const std::string id = MustCreateLayer(server, MakeLayer(SmallLayerConfig(), 6), "source");
  v1::ConvertLayerRequest request;
  request.set_source_layer_id(id);
  request.set_num_kv_heads(2);  // as it has: the identity
  v1::ConvertLayerResponse response;
  const grpc::Status status =
      LayerStub(server)->ConvertLayer(NewContext().get(), request, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  const v1::Tensor x = RandomTensor(v1::DTYPE_FLOAT32, {5, 48}, 7);
  EXPECT_EQ(MustForward(server, Request(response.layer().layer_id(), x)).output().data(),
            MustForward(server, Request(id, x)).output().data());
}

TEST_F(CudaLayerTest, WithoutProductsTheServerAttendsAndSaysWhyItHasNoLayers) {
  has_projections_ = false;
  TestServer server(Configure, [this](auto&&...) { return NewBackend(); });
  const grpc::Status status = Upload(server, UploadOf(MakeLayer(SmallLayerConfig(), 1), "layer"));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNIMPLEMENTED);
  EXPECT_THAT(status.error_message(), ::testing::HasSubstr("no projections: the backend was made"));
}

}  // namespace
}  // namespace attention::testing
