#include "client/loadgen/run.h"

#include <gmock/gmock.h>

#include <atomic>
#include <cstdio>
#include <fstream>
#include <sstream>

#include "attention/client/errors.h"
#include "tests/unit/client/loadgen/fake_server.h"
#include "tests/unit/client/loadgen/test_options.h"

namespace attention::loadgen {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

class RunTest : public ::testing::Test {
 protected:
  ExitCode RunIt(const Options& options) {
    return loadgen::Run(options, std::make_shared<client::Client>(server_),
                        {.out = out_,
                         .err = err_,
                         .is_interrupted = [this] { return is_interrupted_.load(); },
                         .clock = clock_});
  }

  std::shared_ptr<FakeServer> server_ = std::make_shared<FakeServer>();
  std::ostringstream out_;
  std::ostringstream err_;
  std::atomic<bool> is_interrupted_ = false;
  SteadyClock clock_;
};

TEST_F(RunTest, EveryWorkloadSucceedsVerifiedAgainstACorrectServer) {
  for (const WorkloadKind workload :
       {WorkloadKind::kAttend, WorkloadKind::kPrefill, WorkloadKind::kDecode}) {
    for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
      Options options = SmallSessionOptions(workload);
      options.shape.dtype = dtype;
      options.verify_fraction = 1;
      options.concurrency = 2;
      options.sessions = 2;
      options.threads = 2;
      options.requests = 50;
      options.decode_tokens = 5;
      options.is_quiet = false;
      out_.str("");
      EXPECT_EQ(RunIt(options), kExitOk) << err_.str();
      EXPECT_THAT(out_.str(), HasSubstr("50 ok        0 refused        0 errors"));
      EXPECT_THAT(out_.str(), HasSubstr("50 answers"));
      EXPECT_THAT(out_.str(), HasSubstr("0 mismatches"));
      EXPECT_THAT(out_.str(), HasSubstr("batch size: median 4"));
      EXPECT_EQ(server_->num_sessions(), 0);
    }
  }
}

TEST_F(RunTest, OpenLoopSucceeds) {
  Options options = SmallOptions();
  options.mode = LoopMode::kOpen;
  options.rate = 500;
  options.requests = 50;
  options.is_quiet = false;
  options.force_progress = true;
  EXPECT_EQ(RunIt(options), kExitOk);
  EXPECT_THAT(out_.str(), HasSubstr("50 ok"));
  EXPECT_THAT(out_.str(), HasSubstr("server 0.1.0 (abc), cpu: fake processor"));
}

TEST_F(RunTest, QuietPrintsNothing) {
  EXPECT_EQ(RunIt(SmallOptions()), kExitOk);
  EXPECT_THAT(out_.str(), IsEmpty());
  EXPECT_THAT(err_.str(), IsEmpty());
}

TEST_F(RunTest, ACorruptedAnswerIsFoundPrintedAndFails) {
  server_->corrupted_answer = 6;
  server_->corruption = 0.01f;
  Options options = SmallOptions();
  options.verify_fraction = 1;
  EXPECT_EQ(RunIt(options), kExitFailed);
  EXPECT_THAT(err_.str(), HasSubstr("MISMATCH: query 0, head 0: relative error"));
  EXPECT_THAT(err_.str(), HasSubstr("num_q_heads=4"));
}

TEST_F(RunTest, AnErrorFailsTheRun) {
  server_->on_request = [](std::int64_t number) {
    return number == 4 ? absl::InternalError("oops") : absl::OkStatus();
  };
  Options options = SmallOptions();
  options.is_quiet = false;
  EXPECT_EQ(RunIt(options), kExitFailed);
  EXPECT_THAT(out_.str(), HasSubstr("1 x INTERNAL, reason (none): oops"));
}

TEST_F(RunTest, RefusalsFailUnlessAllowed) {
  server_->on_request = [](std::int64_t number) {
    return number % 2 == 0
               ? client::WithReason(absl::ResourceExhaustedError("full"), client::kQueueFull)
               : absl::OkStatus();
  };
  Options options = SmallOptions();
  EXPECT_EQ(RunIt(options), kExitFailed);
  options.allow_refused = true;
  EXPECT_EQ(RunIt(options), kExitOk);
}

TEST_F(RunTest, AnUnreachableTargetIsNamed) {
  server_->ready_status = absl::UnavailableError("connection refused");
  EXPECT_EQ(RunIt(SmallOptions()), kExitUnreachable);
  EXPECT_THAT(err_.str(), HasSubstr("cannot reach fake:1 within 5s: connection refused"));
}

TEST_F(RunTest, SessionsThatCannotBeMadeAreExplained) {
  server_->SetCreateStatus(client::WithReason(
      absl::ResourceExhaustedError("sessions: 8 of 8 in use"), client::kQuotaExceeded));
  Options options = SmallSessionOptions(WorkloadKind::kDecode);
  options.is_quiet = false;
  options.json_path = ::testing::TempDir() + "loadgen_full_server.json";
  EXPECT_EQ(RunIt(options), kExitFailed);
  EXPECT_THAT(err_.str(), HasSubstr("cannot prepare the sessions: RESOURCE_EXHAUSTED, reason "
                                    "QUOTA_EXCEEDED: sessions: 8 of 8 in use"));
  EXPECT_THAT(out_.str(), HasSubstr("0 ok        0 refused        1 errors"));
  EXPECT_THAT(out_.str(), HasSubstr("session setup: QUOTA_EXCEEDED: sessions: 8 of 8 in use"));
  std::ifstream file(options.json_path);
  EXPECT_EQ(nlohmann::json::parse(file)["exit_code"], kExitFailed);
  std::remove(options.json_path.c_str());
}

TEST_F(RunTest, AServerThatHasRoomForSomeSessionsIsMeasuredWithThose) {
  server_->SetCreateStatusAfter(
      1, client::WithReason(absl::ResourceExhaustedError("full"), client::kQuotaExceeded));
  Options options = SmallSessionOptions(WorkloadKind::kDecode);
  options.sessions = options.concurrency = 2;
  options.requests = 4;
  options.is_quiet = false;
  EXPECT_EQ(RunIt(options), kExitFailed);
  EXPECT_THAT(out_.str(), HasSubstr("4 ok"));
  EXPECT_THAT(out_.str(), HasSubstr("session setup: QUOTA_EXCEEDED: full"));
}

TEST_F(RunTest, AnInterruptStillPrintsTheTable) {
  server_->on_request = [this](std::int64_t number) {
    if (number == 3) is_interrupted_ = true;
    return absl::OkStatus();
  };
  Options options = SmallOptions();
  options.requests.reset();
  options.is_quiet = false;
  EXPECT_EQ(RunIt(options), kExitInterrupted);
  EXPECT_THAT(out_.str(), HasSubstr("(interrupted)"));
}

TEST_F(RunTest, WritesTheJsonFile) {
  Options options = SmallOptions();
  options.json_path = ::testing::TempDir() + "loadgen_run_test.json";
  EXPECT_EQ(RunIt(options), kExitOk);
  std::ifstream file(options.json_path);
  const auto json = nlohmann::json::parse(file);
  EXPECT_EQ(json["requests"]["ok"], 10);
  EXPECT_EQ(json["exit_code"], 0);
  std::remove(options.json_path.c_str());
}

TEST_F(RunTest, AJsonFileThatCannotBeWrittenIsToldBeforeTheRun) {
  Options options = SmallOptions();
  options.json_path = "/no/such/folder/report.json";
  EXPECT_EQ(RunIt(options), kExitUsage);
  EXPECT_THAT(
      err_.str(),
      HasSubstr("cannot write --json /no/such/folder/report.json: No such file or directory"));
  EXPECT_EQ(server_->num_requests(), 0);
}

}  // namespace
}  // namespace attention::loadgen
