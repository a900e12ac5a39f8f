#include "server/make_devices.h"

#include <gmock/gmock.h>

namespace attention::server {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

const std::vector<CpuList> kTwoNodes = {{0, 1, 2, 3}, {4, 5, 6, 7}};

ServerConfig Config(int workers, int threads, const std::string& pin_threads = "auto") {
  ServerConfig config;
  config.workers = workers;
  config.threads = threads;
  config.pin_threads = pin_threads;
  return config;
}

std::vector<BackendOptions> Divide(const ServerConfig& config,
                                   const std::vector<CpuList>& nodes = kTwoNodes) {
  const auto devices = DivideMachine(config, nodes);
  EXPECT_TRUE(devices.ok()) << devices.status();
  return devices.value_or(std::vector<BackendOptions>());
}

TEST(DivideMachineTest, OneNodeIsOneWorkerThatTheSystemPlaces) {
  const auto devices = Divide(Config(0, 0), {{0, 1}});
  ASSERT_EQ(devices.size(), 1u);
  EXPECT_EQ(devices[0].num_threads, 2);
  EXPECT_TRUE(devices[0].cpus.empty());
}

TEST(DivideMachineTest, EachNodeIsAWorkerWithPinnedThreads) {
  const auto devices = Divide(Config(0, 0));
  ASSERT_EQ(devices.size(), 2u);
  EXPECT_EQ(devices[0].cpus, kTwoNodes[0]);
  EXPECT_EQ(devices[1].cpus, kTwoNodes[1]);
}

TEST(DivideMachineTest, ThreadsAreThoseOfAllWorkersTogether) {
  const auto devices = Divide(Config(2, 5));
  ASSERT_EQ(devices.size(), 2u);
  EXPECT_EQ(devices[0].cpus, (CpuList{0, 1, 2}));
  EXPECT_EQ(devices[1].cpus, (CpuList{4, 5}));
}

TEST(DivideMachineTest, AQuotaOfTimeIsAsManyThreadsThatTheSystemPlaces) {
  MachineLimits limits;
  limits.cpus = 2.5;
  const auto devices = DivideMachine(Config(0, 0), kTwoNodes, VisibleGpus, limits);
  ASSERT_TRUE(devices.ok()) << devices.status();
  ASSERT_EQ(devices->size(), 2u);
  EXPECT_EQ((*devices)[0].num_threads + (*devices)[1].num_threads, 3);
  EXPECT_TRUE((*devices)[0].cpus.empty()) << "others may have the same CPUs";

  limits.cpus = 0.5;
  const auto one = DivideMachine(Config(0, 0), kTwoNodes, VisibleGpus, limits);
  ASSERT_TRUE(one.ok()) << one.status();
  ASSERT_EQ(one->size(), 1u) << "no more workers than threads";
  EXPECT_EQ((*one)[0].num_threads, 1);
}

TEST(DivideMachineTest, PinningIsTheOperatorsToChoose) {
  EXPECT_EQ(Divide(Config(1, 0, "yes"), {{0, 1}})[0].cpus, (CpuList{0, 1}));
  EXPECT_TRUE(Divide(Config(2, 0, "no"))[0].cpus.empty());
  // More threads than CPUs: no two could have one of their own.
  EXPECT_TRUE(Divide(Config(2, 12))[0].cpus.empty());
  EXPECT_EQ(Divide(Config(2, 12))[0].num_threads, 6);
  EXPECT_EQ(Divide(Config(9, 9)).size(), 9u) << "workers that share CPUs, as told";
}

// The ordinals of the workers' GPUs, of a machine that has these.
absl::StatusOr<std::vector<int>> GpusOf(const ServerConfig& config,
                                        const absl::StatusOr<std::vector<VisibleGpu>>& gpus) {
  const auto devices = DivideMachine(config, kTwoNodes, [&gpus] { return gpus; });
  if (!devices.ok()) return devices.status();
  std::vector<int> ordinals;
  for (const BackendOptions& device : *devices) ordinals.push_back(device.cuda_device);
  return ordinals;
}

ServerConfig CudaConfig(int workers, std::vector<int> cuda_devices) {
  ServerConfig config = Config(workers, 0);
  config.backend = "cuda";
  config.cuda_devices = std::move(cuda_devices);
  return config;
}

const std::vector<VisibleGpu> kGpus = {{"P4", absl::UnavailableError("P4 is too old")},
                                       {"H200", absl::OkStatus()},
                                       {"H200", absl::OkStatus()}};

TEST(DivideMachineTest, EachGpuThatCanBeUsedIsAWorker) {
  EXPECT_THAT(*GpusOf(CudaConfig(0, {}), kGpus), ElementsAre(1, 2));
  EXPECT_THAT(*GpusOf(CudaConfig(1, {}), kGpus), ElementsAre(1));
}

TEST(DivideMachineTest, GpusAreTheOperatorsToChoose) {
  EXPECT_THAT(*GpusOf(CudaConfig(0, {2, 0}), kGpus), ElementsAre(2, 0))
      << "what cannot be used says so when it is";
  EXPECT_THAT(*GpusOf(CudaConfig(0, {5}), absl::UnavailableError("not asked")), ElementsAre(5));
}

TEST(DivideMachineTest, WithoutAGpuItIsSaidWhy) {
  EXPECT_EQ(GpusOf(CudaConfig(0, {}), absl::UnavailableError("no driver")).status().message(),
            "no driver");
  EXPECT_EQ(GpusOf(CudaConfig(0, {}), std::vector<VisibleGpu>{kGpus[0]}).status().message(),
            "P4 is too old");
  EXPECT_EQ(GpusOf(CudaConfig(3, {}), kGpus).status().message(),
            "workers is 3, expected at most the 2 GPUs");
}

TEST(DivideMachineTest, WhatDoesNotFitTheMachineIsRefusedByKey) {
  const auto message = [](const ServerConfig& config) {
    const auto devices = DivideMachine(config, kTwoNodes);
    EXPECT_EQ(devices.status().code(), absl::StatusCode::kInvalidArgument);
    return std::string(devices.status().message());
  };
  EXPECT_THAT(message(Config(9, 0)), HasSubstr("workers is 9, expected at most the 8 CPUs"));
  EXPECT_THAT(message(Config(2, 1)), HasSubstr("threads is 1, expected one for each of the 2"));
  EXPECT_THAT(message(Config(2, 9, "yes")), HasSubstr("threads is 9, expected at most the 8 CPUs"));
}

}  // namespace
}  // namespace attention::server
