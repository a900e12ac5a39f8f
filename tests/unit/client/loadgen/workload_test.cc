#include "client/loadgen/workload.h"

#include <gtest/gtest.h>

#include <memory>
#include <set>

#include "client/loadgen/oracle.h"
#include "client/loadgen/session_workload.h"
#include "tests/unit/client/loadgen/fake_server.h"
#include "tests/unit/client/loadgen/test_options.h"

namespace attention::loadgen {
namespace {

class WorkloadTest : public ::testing::Test {
 protected:
  void Start(const Options& options) {
    pool_ = std::make_unique<TensorPool>(options.shape.dtype, LargestTensor(options), 1);
    workload_ = MakeWorkload(options, *pool_, std::make_shared<client::Client>(server_));
  }
  absl::Status Prepare(int user) {
    absl::Status result = absl::UnknownError("not called");
    workload_->Prepare(user, {}, [&result](const absl::Status& status) { result = status; });
    return result;
  }
  absl::StatusOr<Answer> Send(int user) {
    absl::StatusOr<Answer> result = absl::UnknownError("not called");
    workload_->Send(user, {}, [&result](absl::StatusOr<Answer> answer) { result = answer; });
    return result;
  }
  bool IsCorrect(const Answer& answer) const {
    return CheckAnswer(*pool_, answer.request, answer.output).status.ok();
  }

  std::shared_ptr<FakeServer> server_ = std::make_shared<FakeServer>();
  std::unique_ptr<TensorPool> pool_;
  std::unique_ptr<Workload> workload_;
};

TEST_F(WorkloadTest, AttendSendsFreshDataInEachRequestAndUser) {
  Options options = SmallOptions();
  options.concurrency = 3;
  Start(options);
  EXPECT_EQ(workload_->num_users(), 3);
  std::set<std::int64_t> offsets;
  for (int i = 0; i < 12; ++i) {
    const auto answer = Send(i % 3);
    ASSERT_TRUE(answer.ok());
    EXPECT_TRUE(IsCorrect(*answer));
    offsets.insert({answer->request.q_offset, answer->request.k_offset, answer->request.v_offset});
  }
  EXPECT_EQ(offsets.size(), 36u);
}

TEST_F(WorkloadTest, AttendCountsItsWork) {
  Options options = SmallOptions();
  options.shape.is_causal = false;
  Start(options);
  const Work work = Send(0)->work;
  EXPECT_EQ(work.tokens, 3);
  EXPECT_EQ(work.flops, 2.0 * (8 + 6) * 3 * 5 * 4);
  EXPECT_EQ(work.bytes_sent, 4 * (3 * 4 * 8 + 5 * 2 * 8 + 5 * 2 * 6));
  EXPECT_EQ(work.bytes_received, 4 * 3 * 4 * 6);
}

TEST_F(WorkloadTest, DecodeFillsTheContextThenStepsThroughTheLayers) {
  Options options = SmallSessionOptions(WorkloadKind::kDecode);
  options.sessions = 2;
  Start(options);
  EXPECT_FALSE(workload_->IsReady(1));
  ASSERT_TRUE(Prepare(1).ok());
  EXPECT_TRUE(workload_->IsReady(1));
  EXPECT_EQ(server_->session_rows(0, 0), 7);
  EXPECT_EQ(server_->session_rows(0, 1), 7);
  EXPECT_EQ(server_->num_requests(), 0) << "the context is appended without attending";
  for (int step = 0; step < 6; ++step) {
    const auto answer = Send(1);
    ASSERT_TRUE(answer.ok()) << answer.status();
    EXPECT_EQ(answer->request.layer, step % 2);
    EXPECT_EQ(answer->request.shape.kv_len, 8 + step / 2);
    EXPECT_TRUE(IsCorrect(*answer)) << step;
    EXPECT_EQ(answer->work.tokens, 1);
    EXPECT_EQ(answer->work.bytes_sent, 4 * (4 * 8 + 2 * 8 + 2 * 6));
  }
}

TEST_F(WorkloadTest, ALongContextTravelsInChunks) {
  Options options = SmallSessionOptions(WorkloadKind::kDecode);
  options.layers = 1;
  options.context = 100000;
  Start(options);
  ASSERT_LT(ContextChunkRows({.shape = options.shape}), 100000);
  ASSERT_TRUE(Prepare(0).ok());
  EXPECT_EQ(server_->session_rows(0, 0), 100000);
  EXPECT_TRUE(IsCorrect(*Send(0)));
}

TEST_F(WorkloadTest, ADecodeSessionIsReplacedAfterItsTokens) {
  Options options = SmallSessionOptions(WorkloadKind::kDecode);
  options.decode_tokens = 3;
  Start(options);
  ASSERT_TRUE(Prepare(0).ok());
  for (int i = 0; i < 6; ++i) {
    EXPECT_TRUE(workload_->IsReady(0));
    ASSERT_TRUE(Send(0).ok());
  }
  EXPECT_FALSE(workload_->IsReady(0));
  ASSERT_TRUE(Prepare(0).ok());
  EXPECT_EQ(server_->num_sessions(), 1);
  EXPECT_EQ(server_->num_created(), 2);
  EXPECT_TRUE(IsCorrect(*Send(0)));
}

TEST_F(WorkloadTest, PrefillUsesASessionPerPrompt) {
  const Options options = SmallSessionOptions(WorkloadKind::kPrefill);
  Start(options);
  for (int session = 1; session <= 3; ++session) {
    ASSERT_TRUE(Prepare(0).ok());
    EXPECT_EQ(server_->num_created(), session);
    EXPECT_EQ(server_->num_sessions(), 1);
    for (int layer = 0; layer < 2; ++layer) {
      const auto answer = Send(0);
      ASSERT_TRUE(answer.ok());
      EXPECT_EQ(answer->request.layer, layer);
      EXPECT_EQ(answer->request.shape.kv_len, 3);
      EXPECT_TRUE(IsCorrect(*answer));
    }
    EXPECT_FALSE(workload_->IsReady(0));
  }
}

TEST_F(WorkloadTest, AFailedStepEndsItsSession) {
  server_->on_request = [](std::int64_t) { return absl::UnavailableError("gone"); };
  Start(SmallSessionOptions(WorkloadKind::kDecode));
  ASSERT_TRUE(Prepare(0).ok());
  EXPECT_EQ(Send(0).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_FALSE(workload_->IsReady(0));
}

TEST_F(WorkloadTest, ARefusedStepMayBeSentAgain) {
  server_->on_request = [](std::int64_t number) {
    return number == 0 ? absl::ResourceExhaustedError("full") : absl::OkStatus();
  };
  Start(SmallSessionOptions(WorkloadKind::kDecode));
  ASSERT_TRUE(Prepare(0).ok());
  EXPECT_FALSE(Send(0).ok());
  EXPECT_TRUE(workload_->IsReady(0));
  EXPECT_TRUE(IsCorrect(*Send(0)));
}

TEST_F(WorkloadTest, CloseDeletesTheSession) {
  Start(SmallSessionOptions(WorkloadKind::kDecode));
  ASSERT_TRUE(Prepare(0).ok());
  workload_->Close(0, {}, [](const absl::Status&) {});
  EXPECT_EQ(server_->num_sessions(), 0);
  EXPECT_FALSE(workload_->IsReady(0));
}

TEST_F(WorkloadTest, AFailedCreationCanBeTriedAgain) {
  server_->SetCreateStatus(absl::ResourceExhaustedError("too many"));
  Start(SmallSessionOptions(WorkloadKind::kDecode));
  EXPECT_FALSE(Prepare(0).ok());
  EXPECT_FALSE(workload_->IsReady(0));
  server_->SetCreateStatus(absl::OkStatus());
  EXPECT_TRUE(Prepare(0).ok());
}

TEST_F(WorkloadTest, MixedDealsUsersOutToTheThreeKinds) {
  Options options = SmallSessionOptions(WorkloadKind::kMixed);
  options.sessions = 5;
  Start(options);
  ASSERT_EQ(workload_->num_users(), 5);
  for (int user = 0; user < 5; ++user) ASSERT_TRUE(Prepare(user).ok());
  EXPECT_EQ(server_->num_sessions(), 3) << "users 1 and 4 prefill, user 2 decodes";
  for (const int user : {0, 3}) {
    const auto answer = Send(user);
    ASSERT_TRUE(answer.ok());
    EXPECT_EQ(answer->request.shape.kv_len, 5) << "attend";
    EXPECT_TRUE(IsCorrect(*answer));
  }
  for (const int user : {1, 4}) EXPECT_EQ(Send(user)->request.shape.kv_len, 3) << "prefill";
  const auto decoded = Send(2);
  ASSERT_TRUE(decoded.ok());
  EXPECT_EQ(decoded->request.shape.q_len, 1);
  EXPECT_EQ(decoded->request.shape.kv_len, 8);
  EXPECT_TRUE(IsCorrect(*decoded));
}

TEST_F(WorkloadTest, StepsGoOnTheStreamsThatUsersShare) {
  Options options = SmallSessionOptions(WorkloadKind::kDecode);
  options.sessions = 3;
  options.streams = 2;
  Start(options);
  for (int user = 0; user < 3; ++user) {
    ASSERT_TRUE(Prepare(user).ok());
    const auto answer = Send(user);
    ASSERT_TRUE(answer.ok()) << answer.status();
    EXPECT_TRUE(IsCorrect(*answer));
  }
  EXPECT_EQ(server_->num_streams(), 2 + 1) << "the third is what the sessions end with";
  EXPECT_EQ(server_->num_stream_requests(), 3);
}

TEST_F(WorkloadTest, SessionsEndWithOneStreamOfTheirTarget) {
  Options options = SmallSessionOptions(WorkloadKind::kDecode);
  options.sessions = 5;
  options.targets = {"fake:1", "fake:2"};
  Start(options);
  for (int user = 0; user < 5; ++user) ASSERT_TRUE(Prepare(user).ok());
  EXPECT_EQ(server_->stream_targets(), (std::vector<int>{0, 1}));
  EXPECT_EQ(server_->num_created_on_streams(), 5);
}

TEST_F(WorkloadTest, AStreamThatBrokeIsOpenedAnew) {
  Options options = SmallSessionOptions(WorkloadKind::kDecode);
  options.streams = 1;
  Start(options);
  ASSERT_TRUE(Prepare(0).ok());
  ASSERT_TRUE(Send(0).ok());
  const int before = server_->num_streams();
  server_->BreakStreams();
  ASSERT_TRUE(Send(0).ok());
  EXPECT_EQ(server_->num_streams(), before + 1);
}

}  // namespace
}  // namespace attention::loadgen
