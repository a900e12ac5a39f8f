// More sessions than the KV pages hold: idle ones wait in other memory, and no answer changes.
#include <vector>

#include "absl/time/clock.h"
#include "tests/support/session_driver.h"

namespace attention::testing {
namespace {

constexpr std::int64_t kLength = 3000;  // 1.5 MiB of keys and values
constexpr int kSessions = 3;

// Pages for one session.
ConfigChange Small(std::int64_t spill_bytes) {
  return [spill_bytes](server::ServerConfig& config) {
    config.workers = 1;
    config.kv_capacity_bytes = std::int64_t{2} << 20;
    config.kv_spill_bytes = spill_bytes;
    config.kv_spill_idle = absl::Milliseconds(1);
  };
}

class SpillTest : public ::testing::Test {
 protected:
  // Fills sessions one after another, then asks each of them twice; the answers.
  std::vector<v1::AttendResponse> Serve(ServerClient& server) {
    std::vector<v1::SessionHandle> handles;
    for (const v1::AttendRequest& prompt : prompts_) {
      handles.push_back(MustCreate(server).handle());
      WaitIdle();
      MustStep(server, MakeAppend(prompt, handles.back(), 0, kLength - 1));
    }
    std::vector<v1::AttendResponse> answers;
    for (int round = 0; round < 2; ++round) {
      for (int i = 0; i < kSessions; ++i) {
        WaitIdle();
        // The second time it is a replay.
        answers.push_back(
            AsResponse(MustStep(server, MakeStep(prompts_[i], handles[i], kLength - 1, kLength))));
      }
    }
    return answers;
  }

  // Sleeps for longer than kv_spill_idle; no event tells that it has passed.
  static void WaitIdle() { absl::SleepFor(absl::Milliseconds(5)); }

  const std::vector<v1::AttendRequest> prompts_ = {MakePrompt(kLength, v1::DTYPE_FLOAT32, 1),
                                                   MakePrompt(kLength, v1::DTYPE_FLOAT32, 2),
                                                   MakePrompt(kLength, v1::DTYPE_FLOAT32, 3)};
};

TEST_F(SpillTest, SessionsThatWaitInHostMemoryAnswerWithTheSameBits) {
  TestServer large, small(Small(std::int64_t{8} << 20));
  const std::vector<v1::AttendResponse> expected = Serve(large), answers = Serve(small);
  ASSERT_EQ(answers.size(), expected.size());
  for (std::size_t i = 0; i < answers.size(); ++i) {
    EXPECT_TRUE(SameAnswer(answers[i], expected[i])) << "answer " << i;
  }
  EXPECT_EQ(large.Metric("attention_sessions_spilled_total"), 0);
  EXPECT_GE(small.Metric("attention_sessions_spilled_total"), 2 * kSessions);
  EXPECT_GE(small.Metric("attention_sessions_restored_total"), 2 * kSessions - 1);
  EXPECT_GT(small.Metric("attention_kv_spilled_bytes"), 0);
}

TEST_F(SpillTest, WithoutHostMemoryAFullServerRefuses) {
  TestServer server(Small(0));
  MustStep(server, MakeAppend(prompts_[0], MustCreate(server).handle(), 0, kLength));
  const v1::SessionStepResult refused =
      RunStep(server, MakeAppend(prompts_[1], MustCreate(server).handle(), 0, kLength));
  EXPECT_THAT(refused.error(), FailsBecause(grpc::RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED"));
}

}  // namespace
}  // namespace attention::testing
