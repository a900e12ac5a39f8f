// The SDK and a server that shares memory, as tests of both need them.
#pragma once

#include <unistd.h>

#include <memory>
#include <string>

#include "attention/client/client.h"
#include "tests/support/service_fixture.h"
#include "tests/support/wire_tensor.h"

namespace attention::testing {

inline constexpr std::int64_t kMegabyte = std::int64_t{1} << 20;

inline std::string PathOf(const std::string& name) {
  return ::testing::TempDir() + "attention-" + name + "-" + std::to_string(getpid());
}

inline ConfigChange Sharing(const std::string& name, const ConfigChange& change = nullptr) {
  return [name, change](server::ServerConfig& config) {
    config.shared_memory_listen = "unix:" + PathOf(name + "-channel");
    if (change) change(config);
  };
}

// Connected, and with a channel if there is to be one.
inline std::shared_ptr<client::Client> NewClient(const std::string& address,
                                                 client::ClientOptions options = {}) {
  options.targets = {address};
  auto made = client::Client::Connect(options);
  EXPECT_TRUE(made.ok()) << made.status();
  EXPECT_TRUE((*made)->WaitUntilReady(absl::Seconds(30)).ok());
  return *std::move(made);
}

inline client::DType SdkType(v1::DType dtype) {
  if (dtype == v1::DTYPE_BOOL) return client::DType::kBool;
  return dtype == v1::DTYPE_FLOAT32   ? client::DType::kFloat32
         : dtype == v1::DTYPE_FLOAT16 ? client::DType::kFloat16
                                      : client::DType::kBFloat16;
}

inline client::TensorView ViewOf(const v1::Tensor& tensor) {
  return client::TensorView(tensor.data().data(), SdkType(tensor.dtype()), ShapeOf(tensor));
}

// The request in the SDK's words; looks at `wire`.
inline client::AttendRequest Sdk(const v1::AttendRequest& wire) {
  client::AttendRequest request;
  request.q = ViewOf(wire.q());
  request.k = ViewOf(wire.k());
  request.v = ViewOf(wire.v());
  request.q_lens = {wire.q_lens().begin(), wire.q_lens().end()};
  request.kv_lens = {wire.kv_lens().begin(), wire.kv_lens().end()};
  request.config.is_causal = wire.config().is_causal();
  request.returns.lse = wire.returns().lse();
  return request;
}

// 768 KiB in and 256 KiB out.
inline v1::AttendRequest LargeRequest(std::uint32_t seed = 1) {
  return MakeAttendRequest({.q_lens = {500, 12}, .kv_lens = {1500, 36}, .seed = seed});
}

MATCHER_P(HasBitsOf, expected, "") {
  if (!arg.ok()) {
    *result_listener << "which is " << arg.status();
    return false;
  }
  return arg->output.bytes() == expected.output().data() &&
         arg->lse.bytes() == expected.lse().data();
}

}  // namespace attention::testing
