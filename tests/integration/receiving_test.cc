// Requests that come in part, or are larger than they may be: memory stays bounded and comes back,
// the calls end with the reason, and a neighbour notices nothing.
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "tests/support/server_process.h"
#include "tests/support/session_driver.h"
#include "tests/support/stalled_upload.h"

namespace attention::testing {
namespace {

using ::testing::HasSubstr;

constexpr std::uint32_t kMib = 1 << 20;
constexpr int kBudgetMib = 128;
constexpr char kAttend[] = "/attention.v1.AttentionService/Attend";

// Calls again and again from a connection of its own; none may fail.
class SmallCalls {
 public:
  explicit SmallCalls(ServerClient& server)
      : server_(server.address(), server.admin_address()),
        request_(MakeAttendRequest({})),
        expected_(MustAttend(server_, request_)),
        thread_([this] { Run(); }) {}
  ~SmallCalls() {
    is_done_ = true;
    thread_.join();
    EXPECT_EQ(failure_, "");
    EXPECT_GT(num_calls_, 0);
  }

 private:
  void Run() {
    while (!is_done_ && failure_.empty()) {
      v1::AttendResponse response;
      const grpc::Status status = Attend(server_, request_, &response);
      if (!status.ok()) failure_ = status.error_message();
      if (status.ok() && !SameAnswer(response, expected_)) failure_ = "other bits";
      ++num_calls_;
    }
  }

  ServerClient server_;
  const v1::AttendRequest request_;
  const v1::AttendResponse expected_;
  std::atomic<bool> is_done_{false};
  std::string failure_;
  int num_calls_ = 0;
  std::thread thread_;
};

class ReceivingTest : public ::testing::Test {
 protected:
  explicit ReceivingTest(const std::vector<std::string>& more = {})
      : process_(Flags(more)), server_(process_.client()), resident_before_(ResidentMib()) {}

  static std::vector<std::string> Flags(const std::vector<std::string>& more) {
    std::vector<std::string> flags = {absl::StrCat("--max-receiving-bytes=", kBudgetMib * kMib),
                                      absl::StrCat("--max-message-bytes=", 64 * kMib),
                                      absl::StrCat("--max-queued-bytes=", 64 * kMib)};
    flags.insert(flags.end(), more.begin(), more.end());
    return flags;
  }

  double ResidentMib() const {
    return static_cast<double>(process_.ResidentBytes()) / static_cast<double>(kMib);
  }
  double GrowthMib() const { return ResidentMib() - resident_before_; }

  // Sends so many bytes of each, until all are sent or their call has ended. Returns by how much
  // the server's memory grew at most.
  double Send(std::vector<std::unique_ptr<StalledUpload>>& uploads, std::uint64_t bytes) {
    double most = 0;
    const absl::Time give_up = absl::Now() + absl::Seconds(60);
    bool is_done = false;
    while (!is_done && absl::Now() < give_up) {
      is_done = true;
      bool has_sent = false;
      for (const auto& upload : uploads) {
        has_sent |= upload->SendUpTo(bytes);
        is_done &= upload->has_ended() || upload->sent() == bytes;
      }
      most = std::max(most, GrowthMib());
      if (!has_sent) absl::SleepFor(absl::Milliseconds(1));  // for the server to make room
    }
    EXPECT_TRUE(is_done);
    return most;
  }

  ServerProcess process_;
  ServerClient& server_;
  const double resident_before_;
  // Beside: connections, caches of threads, and what an allocator cannot use again at once.
  static constexpr double kOwnMib = 190;
};

TEST_F(ReceivingTest, TenUploadsThatStopStayWithinTheBudgetAndDisturbNobody) {
  for (const char* method :
       {kAttend, "/attention.v1.AttentionService/AttendStream", "/grpc.health.v1.Health/Check"}) {
    SmallCalls neighbour(server_);
    std::vector<std::unique_ptr<StalledUpload>> uploads;
    for (int i = 0; i < 10; ++i) {
      uploads.push_back(std::make_unique<StalledUpload>(server_.address(), method, 400 * kMib));
    }
    EXPECT_LT(Send(uploads, 399 * kMib), kBudgetMib + kOwnMib) << method;
    int num_told = 0;
    for (const auto& upload : uploads) {
      if (upload->status() != grpc::RESOURCE_EXHAUSTED) continue;
      EXPECT_THAT(upload->trailers(), HasSubstr("expected at most max-receiving-bytes")) << method;
      ++num_told;
    }
    EXPECT_GE(num_told, 9) << "of " << method << "; the last may have had room";
    uploads.clear();
    EXPECT_TRUE(WaitUntil([&] { return GrowthMib() < kOwnMib; })) << GrowthMib();
  }
  ExpectServes(server_);
}

TEST_F(ReceivingTest, MessagesOverTheLimitCostNoMoreThanTheBudget) {
  SmallCalls neighbour(server_);
  for (int i = 0; i < 3; ++i) {
    std::vector<std::unique_ptr<StalledUpload>> uploads;
    uploads.push_back(std::make_unique<StalledUpload>(server_.address(), kAttend, 400 * kMib));
    EXPECT_LT(Send(uploads, 400 * kMib), kBudgetMib + kOwnMib);
    EXPECT_TRUE(WaitUntil([&] { return uploads[0]->SendUpTo(0) || uploads[0]->has_ended(); }));
    EXPECT_EQ(uploads[0]->status(), grpc::RESOURCE_EXHAUSTED);
  }
  EXPECT_TRUE(WaitUntil([&] { return GrowthMib() < kOwnMib; })) << GrowthMib();
}

TEST_F(ReceivingTest, ACompressedMessageIsRefusedAsItIs) {
  v1::AttendRequest zeros = MakeAttendRequest({});
  zeros.mutable_q()->mutable_data()->assign(300 * kMib, '\0');
  const auto context = NewContext();
  context->set_compression_algorithm(GRPC_COMPRESS_GZIP);
  v1::AttendResponse response;
  EXPECT_THAT(server_.attention().Attend(context.get(), zeros, &response),
              FailsWith(grpc::UNIMPLEMENTED, "'gzip' is disabled"));
  EXPECT_LT(GrowthMib(), kOwnMib);
  ExpectServes(server_);
}

class StallTest : public ReceivingTest {
 protected:
  StallTest() : ReceivingTest({"--upload-stall-timeout=1s"}) {}
};

TEST_F(StallTest, AnUploadThatStandsStillEndsWithTheReason) {
  SmallCalls neighbour(server_);
  for (const char* method : {kAttend, "/attention.v1.AttentionService/AttendStream",
                             "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"}) {
    std::vector<std::unique_ptr<StalledUpload>> uploads;
    uploads.push_back(std::make_unique<StalledUpload>(server_.address(), method, 30 * kMib));
    Send(uploads, 20 * kMib);
    EXPECT_TRUE(WaitUntil([&] { return uploads[0]->SendUpTo(0) || uploads[0]->has_ended(); }));
    EXPECT_EQ(uploads[0]->status(), grpc::DEADLINE_EXCEEDED) << method;
    EXPECT_THAT(uploads[0]->trailers(), HasSubstr("upload-stall-timeout (1s)")) << method;
  }
}

class FewCallsTest : public ReceivingTest {
 protected:
  FewCallsTest() : ReceivingTest({"--max-calls=4"}) {}
};

TEST_F(FewCallsTest, MoreCallsThanMayBeOpenAreRefused) {
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<
      std::unique_ptr<grpc::ClientReaderWriter<v1::AttendStreamRequest, v1::AttendStreamResponse>>>
      streams;
  for (int i = 0; i < 4; ++i) {
    contexts.push_back(NewContext());
    streams.push_back(server_.attention().AttendStream(contexts.back().get()));
    v1::AttendStreamRequest request;
    *request.mutable_request() = MakeAttendRequest({});
    v1::AttendStreamResponse answer;
    ASSERT_TRUE(streams.back()->Write(request) && streams.back()->Read(&answer));
  }
  v1::AttendResponse response;
  const grpc::Status status = Attend(server_, MakeAttendRequest({}), &response);
  EXPECT_THAT(status, FailsBecause(grpc::RESOURCE_EXHAUSTED, "QUEUE_FULL"));
  EXPECT_THAT(status.error_message(), HasSubstr("expected at most max-calls (4)"));
  for (const auto& stream : streams) {
    stream->WritesDone();
    EXPECT_TRUE(stream->Finish().ok());
  }
  EXPECT_TRUE(WaitUntil([&] { return Attend(server_, MakeAttendRequest({}), &response).ok(); }));
}

}  // namespace
}  // namespace attention::testing
