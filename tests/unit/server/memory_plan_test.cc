#include "server/memory_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace attention::server {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr std::int64_t kMib = std::int64_t{1} << 20;

MachineLimits Memory(std::int64_t mib) { return {mib * kMib, "memory.max", std::nullopt, ""}; }

MemoryPlan Plan(const ServerConfig& config, std::int64_t mib) {
  const auto plan = PlanMemory(config, Memory(mib));
  EXPECT_TRUE(plan.ok()) << plan.status();
  return plan.value_or(MemoryPlan());
}

std::int64_t Sum(const MemoryPlan& plan) {
  const ServerConfig& config = plan.config;
  return config.kv_capacity_bytes + config.layer_capacity_bytes + config.kv_spill_bytes +
         config.max_queued_bytes + config.max_result_bytes + config.max_receiving_bytes +
         plan.idle_buffer_bytes;
}

TEST(MemoryPlanTest, TheDefaultsFitWhateverTheMemory) {
  for (const std::int64_t mib : {256, 512, 1024, 8192, 24576, 1 << 20}) {
    const MemoryPlan plan = Plan(ServerConfig(), mib);
    EXPECT_LE(Sum(plan), mib * kMib / 32 * 29) << "the rest is for workspace and the program";
    EXPECT_GE(plan.config.kv_capacity_bytes, mib * kMib / 6);
    EXPECT_LE(plan.config.max_message_bytes, plan.config.max_receiving_bytes / 2);
    EXPECT_LE(plan.config.max_queued_bytes, 2048 * kMib) << "more helps nobody";
  }
  EXPECT_EQ(Plan(ServerConfig(), 1 << 20).config.max_message_bytes, 1024 * kMib);
}

TEST(MemoryPlanTest, WhatIsConfiguredIsTakenAndTheRestFitsBesideIt) {
  ServerConfig config;
  config.kv_capacity_bytes = 600 * kMib;
  config.max_queued_bytes = 50 * kMib;
  const MemoryPlan plan = Plan(config, 1024);
  EXPECT_EQ(plan.config.kv_capacity_bytes, 600 * kMib);
  EXPECT_EQ(plan.config.max_queued_bytes, 50 * kMib);
  EXPECT_GT(plan.config.layer_capacity_bytes, 0);
  EXPECT_LT(Sum(plan), 1024 * kMib);
}

TEST(MemoryPlanTest, SharedMemoryHasAShareWhereItIsOffered) {
  ServerConfig config;
  EXPECT_EQ(Plan(config, 1024).config.max_shared_bytes, 0) << "it is not offered";
  config.shared_memory_listen = "unix:shared-memory.sock";
  const MemoryPlan plan = Plan(config, 1024);
  EXPECT_GT(plan.config.max_shared_bytes, 64 * kMib);
  EXPECT_LT(Sum(plan) + plan.config.max_shared_bytes, 1024 * kMib);
  EXPECT_EQ(plan.config.max_shared_bytes_per_user, plan.config.max_shared_bytes / 2);
  EXPECT_EQ(plan.config.max_shared_bytes_per_connection, plan.config.max_shared_bytes / 4);
  EXPECT_THAT(plan.text, HasSubstr("max-shared-bytes "));
  EXPECT_EQ(Plan(config, 1 << 20).config.max_shared_bytes, 4096 * kMib);
}

TEST(MemoryPlanTest, SharedMemoryThatIsConfiguredMustFit) {
  ServerConfig config;
  config.shared_memory_listen = "unix:shared-memory.sock";
  config.max_shared_bytes = 2048 * kMib;
  EXPECT_THAT(std::string(PlanMemory(config, Memory(1024)).status().message()),
              HasSubstr("max-shared-bytes (2147483648 bytes)"));
}

TEST(MemoryPlanTest, TheLineForTheLogHasEveryPart) {
  ServerConfig config;
  config.kv_capacity_bytes = 100 * kMib;
  EXPECT_THAT(Plan(config, 1024).text,
              AllOf(HasSubstr("memory: 1024 MiB (memory.max): kv-capacity-bytes 100 MiB, "
                              "layer-capacity-bytes "),
                    HasSubstr("max-queued-bytes "), HasSubstr("max-result-bytes "),
                    HasSubstr("max-receiving-bytes "), HasSubstr("idle buffers "),
                    HasSubstr("workspace and the program itself ")));
}

TEST(MemoryPlanTest, ASumAboveTheMemoryIsRefusedByName) {
  ServerConfig config;
  config.kv_capacity_bytes = 900 * kMib;
  config.max_queued_bytes = 100 * kMib;
  const absl::Status status = PlanMemory(config, Memory(1024)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr("kv-capacity-bytes (943718400 bytes)"),
                                                   HasSubstr("max-queued-bytes (104857600 bytes)"),
                                                   HasSubstr("1073741824 bytes of memory.max"),
                                                   Not(HasSubstr("layer-capacity-bytes"))));
}

TEST(MemoryPlanTest, AMessageMustFitIntoWhatIsReceived) {
  ServerConfig config;
  config.max_message_bytes = 64 * kMib;
  config.max_receiving_bytes = 32 * kMib;
  EXPECT_THAT(std::string(PlanMemory(config, Memory(1024)).status().message()),
              HasSubstr("max-message-bytes is 67108864, expected at most max-receiving-bytes "
                        "(33554432"));
}

TEST(MemoryPlanTest, TheResultsOfARequestMustFitIntoThoseOfAll) {
  ServerConfig config;
  config.max_result_bytes = 32 * kMib;
  EXPECT_EQ(Plan(config, 1024).config.max_response_bytes, 32 * kMib);
  config.max_response_bytes = 64 * kMib;
  EXPECT_THAT(std::string(PlanMemory(config, Memory(1024)).status().message()),
              HasSubstr("max-response-bytes is 67108864, expected at most max-result-bytes "
                        "(33554432)"));
}

TEST(MemoryPlanTest, AGpusMemoryIsItsOwn) {
  ServerConfig config;
  config.backend = "cuda";
  config.kv_capacity_bytes = 80'000 * kMib;
  const MemoryPlan plan = Plan(config, 1024);
  EXPECT_EQ(plan.config.kv_capacity_bytes, 80'000 * kMib);
  EXPECT_EQ(plan.config.layer_capacity_bytes, 0) << "left to what the GPU has free";
}

}  // namespace
}  // namespace attention::server
