// The work that a request causes is charged before it is done: results before they are made, turns
// with no gain for a caller that keeps changing its name. Against the server's own process.
#include <atomic>
#include <thread>

#include "tests/support/server_process.h"
#include "tests/support/session_driver.h"

namespace attention::testing {
namespace {

constexpr std::int64_t kMiB = std::int64_t{1} << 20;

class ChargingTest : public ::testing::Test {
 protected:
  ChargingTest() : server_(process_.client()), resident_before_(process_.ResidentBytes()) {}

  void ExpectGrowthBelow(std::int64_t bytes) {
    EXPECT_LT(process_.ResidentBytes() - resident_before_, bytes);
  }

  // A session of one head of one dim: 8 bytes a token.
  v1::SessionHandle SessionOf(std::int64_t tokens) {
    const v1::SessionHandle handle =
        MustCreate(server_, {.num_kv_heads = 1, .head_dim_qk = 1, .head_dim_v = 1}).handle();
    const v1::AttendRequest rows = MakeAttendRequest({.num_q_heads = 1,
                                                      .num_kv_heads = 1,
                                                      .head_dim_qk = 1,
                                                      .head_dim_v = 1,
                                                      .q_lens = {1},
                                                      .kv_lens = {tokens}});
    MustStep(server_, MakeAppend(rows, handle, 0, tokens));
    return handle;
  }

  // Attends with one row of 256 heads, a KiB, and wants a KiB for each of the first `kv_end` keys.
  static v1::SessionStep WithColumnSums(const v1::SessionHandle& handle, std::int64_t kv_end) {
    v1::SessionStep step;
    *step.mutable_handle() = handle;
    *step.mutable_q() = MakeAttendRequest({.num_q_heads = 256,
                                           .num_kv_heads = 1,
                                           .head_dim_qk = 1,
                                           .head_dim_v = 1,
                                           .q_lens = {1},
                                           .kv_lens = {1}})
                            .q();
    step.set_kv_end(kv_end);
    step.mutable_returns()->set_column_sums(true);
    return step;
  }

  ServerProcess process_{{"--max-response-bytes=33554432", "--max-result-bytes=67108864"}};
  ServerClient& server_;
  const std::int64_t resident_before_;
};

TEST_F(ChargingTest, ResultsOfOneRequestAreBoundedTogether) {
  constexpr std::int64_t kTokens = 256 * 1024;
  const v1::SessionHandle handle = SessionOf(kTokens);
  v1::StepRequest request;
  for (int i = 0; i < 6; ++i) *request.add_steps() = WithColumnSums(handle, kTokens);
  for (int i = 0; i < 2; ++i) *request.add_steps() = WithColumnSums(handle, 20 * 1024);
  v1::StepResponse response;
  const grpc::Status status = server_.sessions().Step(NewContext().get(), request, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  for (int i = 0; i < 8; ++i) {
    if (i == 6) continue;
    EXPECT_THAT(response.results(i).error(),
                FailsWith(grpc::INVALID_ARGUMENT, "returns.column_sums asks for"))
        << i;
  }
  EXPECT_FALSE(response.results(6).has_error()) << response.results(6).error().message();
  EXPECT_EQ(response.results(6).column_sums().data().size(), 20u * kMiB);
  ExpectGrowthBelow(120 * kMiB);
  ExpectServes(server_);
}

TEST_F(ChargingTest, ResultsThatNobodyReadsAreBounded) {
  constexpr int kRequests = 40;  // of 20 MiB each: 800 MiB, if they were all computed
  const v1::SessionHandle handle = SessionOf(20 * 1024);
  const auto context = NewContext();
  const auto stream = server_.sessions().StepStream(context.get());
  v1::StepStreamRequest request;
  *request.mutable_request()->add_steps() = WithColumnSums(handle, 20 * 1024);
  for (int i = 0; i < kRequests; ++i) ASSERT_TRUE(stream->Write(request));
  stream->WritesDone();
  EXPECT_TRUE(WaitUntil(
      [&] { return server_.Metric("attention_rejected_queue_full_total") >= kRequests - 3; }));
  ExpectGrowthBelow(200 * kMiB);
  int num_computed = 0;
  int num_refused = 0;
  v1::StepStreamResponse response;
  while (stream->Read(&response)) {
    if (!response.has_error()) {
      ++num_computed;
    } else {
      EXPECT_EQ(response.error().reason(), "QUEUE_FULL") << response.error().message();
      ++num_refused;
    }
  }
  EXPECT_TRUE(stream->Finish().ok());
  EXPECT_EQ(num_computed, 3) << "of 64 MiB";
  EXPECT_EQ(num_refused, kRequests - 3);
  EXPECT_TRUE(WaitUntil([&] { return server_.Metric("attention_result_bytes") == 0; }));
  ExpectServes(server_);
}

TEST_F(ChargingTest, ANewTenantNameForEachCallGainsNothing) {
  constexpr int kCallers = 24;
  // Much arithmetic in few bytes: the callers keep the queue full.
  const v1::AttendRequest request = MakeAttendRequest({.num_q_heads = 1,
                                                       .num_kv_heads = 1,
                                                       .head_dim_qk = 8,
                                                       .head_dim_v = 8,
                                                       .q_lens = {3072},
                                                       .kv_lens = {3072}});
  std::atomic<bool> is_done{false};
  std::atomic<int> num_answers{0};
  std::vector<std::thread> callers;
  for (int i = 0; i < kCallers; ++i) {
    callers.emplace_back([&, i] {
      v1::AttendResponse response;
      for (int call = 0; !is_done; ++call) {
        const std::string name = "t" + std::to_string(i) + "-" + std::to_string(call);
        EXPECT_TRUE(server_.attention().Attend(NewContext(name).get(), request, &response).ok());
        ++num_answers;
      }
    });
  }
  EXPECT_TRUE(WaitUntil([&] { return num_answers > 3 * kCallers; }));
  for (int call = 0; call < 10; ++call) {
    v1::AttendResponse response;
    const auto context = NewContext("steady", absl::Seconds(20));
    const grpc::Status status = server_.attention().Attend(context.get(), request, &response);
    EXPECT_TRUE(status.ok()) << "call " << call << ": " << status.error_message();
    if (!status.ok()) break;
  }
  is_done = true;
  for (std::thread& caller : callers) caller.join();
}

}  // namespace
}  // namespace attention::testing
