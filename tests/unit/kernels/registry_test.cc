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

}  // namespace
}  // namespace attention
