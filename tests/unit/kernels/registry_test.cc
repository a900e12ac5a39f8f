#include "kernels/registry.h"

#include <gmock/gmock.h>

#include <string>

namespace attention {
namespace {

TEST(RegistryTest, EveryRegisteredBackendCanBeMade) {
  for (std::string_view name : RegisteredBackends()) {
    const auto backend = MakeBackend(name, {.num_threads = 1});
    ASSERT_TRUE(backend.ok()) << backend.status();
    EXPECT_EQ((*backend)->info().name, name);
  }
}

TEST(RegistryTest, AnUnknownNameIsToldTheKnownOnes) {
  const auto backend = MakeBackend("quantum", {});
  EXPECT_EQ(backend.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(backend.status().message()), ::testing::HasSubstr("cpu, reference"));
}

// With or without a library, a driver and a device: the answer is a backend or a reason.
TEST(RegistryTest, TheCudaBackendIsMadeOrSaysWhyNot) {
  const auto backend = MakeBackend("cuda", {});
  if (backend.ok()) {
    EXPECT_EQ((*backend)->info().name, "cuda");
    return;
  }
  EXPECT_EQ(backend.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(backend.status().message()),
              ::testing::AnyOf(::testing::HasSubstr("cannot be loaded"),
                               ::testing::HasSubstr("driver is missing or too old"),
                               ::testing::HasSubstr("expected less than the"),
                               ::testing::HasSubstr("expected 8.0 or newer")));
}

TEST(RegistryTest, AnUnusedGpuComesWithItsReason) {
  const auto devices = UnusedDevices("cpu", {});
  ASSERT_EQ(devices.size(), 1u);
  EXPECT_EQ(devices[0].backend, "cuda");
  EXPECT_NE(devices[0].reason, "");
  EXPECT_TRUE(UnusedDevices("cuda", {}).empty());
}

}  // namespace
}  // namespace attention
