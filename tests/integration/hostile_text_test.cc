// A client's words in ids, names and metadata: whatever they are, errors that repeat them fit into
// headers, and no line of the log is another than the server's.
#include <unistd.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "attention/v1/layer_service.grpc.pb.h"
#include "tests/support/raw_call.h"
#include "tests/support/server_process.h"
#include "tests/support/session_driver.h"

namespace attention::testing {
namespace {

using ::testing::HasSubstr;

// Clears a terminal and begins what looks like a line of the log.
constexpr char kForgery[] = "x\n2026-01-01T00:00:00.000Z error FORGED \x1b[2J";

class HostileTextTest : public ServiceFixture {
 protected:
  // gRPC clients take 8 KiB of headers in all: with more, the call's own error is lost.
  static void ExpectSmallAndPrintable(const grpc::Status& status, absl::string_view beginning) {
    EXPECT_FALSE(status.ok());
    EXPECT_THAT(status.error_message(), HasSubstr(beginning)) << "not the call's own error";
    const std::string message = status.error_message();
    EXPECT_LE(message.size(), 1100u) << message.substr(0, 200);
    EXPECT_LE(status.error_details().size(), 3000u);
    EXPECT_TRUE(std::all_of(message.begin(), message.end(), [](char c) {
      return c >= 0x20 && c < 0x7f;
    })) << message;
  }

  static std::vector<std::string> Words() {
    return {kForgery, std::string(3'000'000, 'z'), std::string(200, '\x01')};
  }
};

TEST_F(HostileTextTest, OfARegionIsRepeatedInPart) {
  const std::string socket = ::testing::TempDir() + absl::StrCat("words-", getpid(), ".sock");
  TestServer own(
      [&socket](server::ServerConfig& config) { config.shared_memory_listen = "unix:" + socket; });
  for (const std::string& words : Words()) {
    v1::AttendRequest request = MakeAttendRequest({});
    request.mutable_q()->clear_data();
    request.mutable_q()->mutable_shared_memory()->set_region_id(words);
    v1::AttendResponse response;
    ExpectSmallAndPrintable(Attend(own, request, &response), "region_id is '");
  }
}

TEST_F(HostileTextTest, OfASessionIsRepeatedInPart) {
  for (const std::string& words : Words()) {
    for (const bool is_server_name : {false, true}) {
      v1::SessionHandle handle = MustCreate(shared_server()).handle();
      (is_server_name ? handle.mutable_server_name() : handle.mutable_session_id())->assign(words);
      const auto context = NewContext();
      v1::GetSessionRequest request;
      *request.mutable_handle() = handle;
      v1::GetSessionResponse response;
      ExpectSmallAndPrintable(
          shared_server().sessions().GetSession(context.get(), request, &response), "handle.");
      // The same in the error of a step, which is a string of a message.
      const v1::SessionStepResult result =
          RunStep(shared_server(), MakeStep(MakePrompt(4), handle, 0, 4));
      EXPECT_TRUE(result.has_error());
      EXPECT_LE(result.error().ByteSizeLong(), 3000u);
      EXPECT_FALSE(absl::StrContains(result.error().message(), "\n"));
    }
  }
}

TEST_F(HostileTextTest, OfALayerIsRepeatedInPart) {
  const auto layers = v1::LayerService::NewStub(shared_server().channel());
  for (const std::string& words : Words()) {
    v1::GetLayerRequest request;
    request.set_layer_id(words);
    v1::GetLayerResponse response;
    ExpectSmallAndPrintable(layers->GetLayer(NewContext().get(), request, &response),
                            "layer_id is '");
  }
}

TEST_F(HostileTextTest, OfAHealthServiceIsRepeatedInPart) {
  // HealthCheckRequest{service}, of 16,383 bytes.
  const std::string request = "\x0a\xff\x7f" + std::string(16383, '\n');
  ExpectSmallAndPrintable(
      CallRaw(shared_server().channel(), "/grpc.health.v1.Health/Check", request), "service is '");
}

// Whatever the format, the log has no line that a client made.
TEST_F(HostileTextTest, ForgesNoLineOfTheLog) {
  for (const std::string& format : {std::string("text"), std::string("json")}) {
    ServerProcess process({"--log-format=" + format, "--log-level=debug"});
    ServerClient& server = process.client();
    v1::SessionHandle handle = MustCreate(server).handle();
    handle.set_session_id(kForgery);
    v1::GetSessionRequest request;
    *request.mutable_handle() = handle;
    v1::GetSessionResponse response;
    server.sessions().GetSession(NewContext().get(), request, &response);
    EXPECT_TRUE(WaitUntil([&] { return absl::StrContains(process.Log(), "FORGED"); }))
        << "the call is in the log";
    const std::vector<std::string> lines = absl::StrSplit(process.Log(), '\n', absl::SkipEmpty());
    for (const std::string& line : lines) {
      EXPECT_FALSE(absl::StartsWith(line, "2026-01-01")) << line;
      EXPECT_FALSE(absl::StrContains(line, '\x1b')) << line;
      EXPECT_TRUE(format != "json" || nlohmann::json::accept(line)) << line;
    }
  }
}

TEST_F(HostileTextTest, ThousandsOfRefusalsAreAFewLinesAndACount) {
  constexpr int kCalls = 2000;
  ServerProcess process;
  ServerClient& server = process.client();
  for (int i = 0; i < kCalls; ++i) {
    v1::AttendResponse response;
    EXPECT_THAT(Attend(server, v1::AttendRequest(), &response),
                FailsWith(grpc::INVALID_ARGUMENT, "q is missing"));
  }
  process.Signal(SIGTERM);
  EXPECT_EQ(process.WaitForExit(), 0);
  int num_logged = 0;
  int num_counted = 0;
  const std::vector<std::string> lines = absl::StrSplit(process.Log(), '\n');
  for (const std::string& line : lines) {
    if (absl::StrContains(line, "q is missing")) ++num_logged;
    const auto found = line.find(" more lines like this were not logged: AttentionService/Attend");
    if (found == std::string::npos) continue;
    EXPECT_THAT(line, HasSubstr("INVALID_ARGUMENT"));
    const auto begin = line.rfind(' ', found - 1) + 1;
    int count = 0;
    EXPECT_TRUE(absl::SimpleAtoi(line.substr(begin, found - begin), &count)) << line;
    num_counted += count;
  }
  EXPECT_LT(num_logged, kCalls / 4);
  EXPECT_EQ(num_logged + num_counted, kCalls) << "none is forgotten";
}

}  // namespace
}  // namespace attention::testing
