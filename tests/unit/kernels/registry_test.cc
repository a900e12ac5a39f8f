#include "kernels/registry.h"

#include <gmock/gmock.h>

#include <string>
#include <vector>

namespace attention {
namespace {

using ::testing::ElementsAre;

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

std::vector<std::string> Describe(const std::vector<UnusedDevice>& devices) {
  std::vector<std::string> texts;
  for (const UnusedDevice& device : devices) {
    EXPECT_EQ(device.backend, "cuda");
    texts.push_back(device.device + ": " + device.reason);
  }
  return texts;
}

TEST(RegistryTest, AMachineTellsItsGpusOrWhyItHasNone) {
  const auto gpus = VisibleGpus();
  if (gpus.ok()) {
    EXPECT_FALSE(gpus->empty());
  } else {
    EXPECT_EQ(gpus.status().code(), absl::StatusCode::kUnavailable);
    EXPECT_THAT(Describe(UnusedGpus(gpus, "cpu", {})),
                ElementsAre(": " + std::string(gpus.status().message())));
  }
}

TEST(RegistryTest, EachUnusedGpuComesWithItsReason) {
  const std::vector<VisibleGpu> gpus = {{"H200 (GPU 0)", absl::OkStatus()},
                                        {"H200 (GPU 1)", absl::OkStatus()},
                                        {"P4 (GPU 2)", absl::UnavailableError("too old")}};
  EXPECT_THAT(
      Describe(UnusedGpus(gpus, "cpu", std::vector<std::string>{"EPYC"})),
      ElementsAre("H200 (GPU 0): the backend is cpu by configuration",
                  "H200 (GPU 1): the backend is cpu by configuration", "P4 (GPU 2): too old"));
  EXPECT_THAT(Describe(UnusedGpus(gpus, "cuda", std::vector<std::string>{"H200 (GPU 1)"})),
              ElementsAre("H200 (GPU 0): it is not among the chosen ones by configuration",
                          "P4 (GPU 2): too old"));
  EXPECT_TRUE(UnusedGpus(absl::UnavailableError("no driver"), "cuda", {}).empty());
}

}  // namespace
}  // namespace attention
