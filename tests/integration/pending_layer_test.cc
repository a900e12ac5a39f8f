// Layers on their way: uploads that do not move, conversions that nobody waits for, and how many
// there may be.
#include <atomic>
#include <future>

#include "absl/synchronization/notification.h"
#include "tests/support/faulty_backend.h"
#include "tests/support/layer_driver.h"

namespace attention::testing {
namespace {

const LayerCase& TheLayer() {
  static const LayerCase* const layer = [] {
    v1::LayerConfig config = SmallLayerConfig();
    config.set_num_kv_heads(4);
    return new LayerCase(MakeLayer(config, 1));
  }();
  return *layer;
}

// An upload that has sent its first messages and sends no more by itself.
class OpenUpload {
 public:
  explicit OpenUpload(ServerClient& server, std::size_t num_messages = 1,
                      const std::string& tenant = "")
      : stub_(LayerStub(server)),
        context_(NewContext(tenant)),
        writer_(stub_->CreateLayer(context_.get(), &response_)) {
    const auto messages = UploadOf(TheLayer(), "pending");
    for (std::size_t i = 0; i < num_messages; ++i) writer_->Write(messages[i]);
  }
  // Waits for the server's answer; the client has not said that it is done.
  grpc::Status Finish() { return writer_->Finish(); }
  grpc::Status Cancel() {
    context_->TryCancel();
    return writer_->Finish();
  }

 private:
  std::unique_ptr<v1::LayerService::Stub> stub_;
  std::unique_ptr<grpc::ClientContext> context_;
  v1::CreateLayerResponse response_;
  std::unique_ptr<grpc::ClientWriter<v1::CreateLayerRequest>> writer_;
};

TEST(PendingLayerTest, AnUploadThatDoesNotMoveEndsAndItsRoomIsFree) {
  TestServer server(
      [](server::ServerConfig& config) { config.upload_stall_timeout = absl::Seconds(1); });
  for (const std::size_t num_messages : {0, 1, 3}) {
    OpenUpload upload(server, num_messages);
    EXPECT_THAT(upload.Finish(),
                FailsWith(grpc::DEADLINE_EXCEEDED, "bytes in upload-stall-timeout (1s)"));
    EXPECT_EQ(server.Metric("attention_layer_bytes"), 0);
  }
  EXPECT_TRUE(WaitUntil([&] { return server.Metric("attention_open_streams") == 0; }));
  MustCreateLayer(server, TheLayer());
}

TEST(PendingLayerTest, SoManyLayersMayBeOnTheirWayOfATenantAndInAll) {
  TestServer server([](server::ServerConfig& config) {
    config.max_pending_layers = 3;
    config.max_pending_layers_per_tenant = 2;
  });
  const auto tenant_has = [&](const std::string& tenant, const char* reason) {
    const grpc::Status status = OpenUpload(server, 1, tenant).Finish();
    EXPECT_TRUE(DetailsOf(status).retry_delay.has_value());
    return DetailsOf(status).reason == reason;
  };
  auto first = std::make_unique<OpenUpload>(server);
  auto second = std::make_unique<OpenUpload>(server);
  ASSERT_TRUE(WaitUntil([&] { return server.Metric("attention_open_streams") == 2; }));
  EXPECT_TRUE(tenant_has("", "QUOTA_EXCEEDED"));
  v1::ConvertLayerRequest conversion;
  conversion.set_source_layer_id("any");
  conversion.set_num_kv_heads(1);
  v1::ConvertLayerResponse converted;
  EXPECT_THAT(LayerStub(server)->ConvertLayer(NewContext().get(), conversion, &converted),
              FailsBecause(grpc::RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED"));
  auto other = std::make_unique<OpenUpload>(server, 1, "other");
  ASSERT_TRUE(WaitUntil([&] { return server.Metric("attention_open_streams") == 3; }));
  EXPECT_TRUE(tenant_has("third", "QUEUE_FULL"));
  for (auto* upload : {&first, &second, &other}) {
    EXPECT_THAT((*upload)->Cancel(), FailsWith(grpc::CANCELLED, ""));
  }
  EXPECT_TRUE(WaitUntil([&] { return server.Metric("attention_open_streams") == 0; }));
  MustCreateLayer(server, TheLayer());
}

// A server whose packing of weights can be held up, or fail.
class FaultyPackingTest : public ::testing::Test {
 protected:
  FaultyPackingTest() {
    faults_.before_call = [this](std::string_view call) {
      if (call != "Pack") return;
      ++num_packs_;
      if (before_pack_) before_pack_();
    };
  }

  grpc::Status Convert(const std::string& layer_id, int num_kv_heads,
                       grpc::ClientContext& context) {
    v1::ConvertLayerRequest request;
    request.set_source_layer_id("source");
    request.set_layer_id(layer_id);
    request.set_num_kv_heads(num_kv_heads);
    v1::ConvertLayerResponse response;
    return LayerStub(server_)->ConvertLayer(&context, request, &response);
  }

  Faults faults_;
  std::atomic<int> num_packs_{0};
  std::function<void()> before_pack_;
  TestServer server_{nullptr, [this](std::string_view, const BackendOptions&) {
                       return std::make_unique<FaultyBackend>(faults_);
                     }};
};

TEST_F(FaultyPackingTest, AConversionWhoseClientHasGoneIsNotComputed) {
  MustCreateLayer(server_, TheLayer(), "source");
  absl::Notification may_pack;
  std::atomic<bool> is_held{false};
  before_pack_ = [&] {
    is_held = true;
    may_pack.WaitForNotification();
  };
  const auto context = NewContext(), cancelled = NewContext(), last = NewContext();
  auto held = std::async(std::launch::async, [&] { return Convert("held", 1, *context); });
  ASSERT_TRUE(WaitUntil([&] { return is_held.load(); }));
  const int num_packs = num_packs_;
  auto gone = std::async(std::launch::async, [&] { return Convert("gone", 2, *cancelled); });
  ASSERT_TRUE(WaitUntil([&] { return server_.Metric("attention_open_calls") == 2; }));
  cancelled->TryCancel();
  EXPECT_THAT(gone.get(), FailsWith(grpc::CANCELLED, ""));
  // Behind it in the queue: when it is answered, the other has had its turn.
  auto after = std::async(std::launch::async, [&] { return Convert("after", 4, *last); });
  ASSERT_TRUE(WaitUntil([&] { return server_.Metric("attention_open_calls") == 3; }));
  may_pack.Notify();
  EXPECT_TRUE(held.get().ok());
  EXPECT_TRUE(after.get().ok());
  EXPECT_EQ(server_.Metric("attention_layers"), 3);
  EXPECT_EQ(num_packs_ - num_packs, 1)
      << "the rest of the first; the last has its source's weights";
}

TEST_F(FaultyPackingTest, WhatPackingThrowsIsTheAnswerAndTheServerGoesOn) {
  MustCreateLayer(server_, TheLayer(), "source");
  const double bytes = server_.Metric("attention_layer_bytes");
  const LayerCase other = MakeLayer(SmallLayerConfig(), 2);
  const auto expect_both_fail = [&](grpc::StatusCode code, const char* message) {
    EXPECT_THAT(Upload(server_, UploadOf(other, "other")), FailsWith(code, message));
    const auto context = NewContext();
    EXPECT_THAT(Convert("converted", 1, *context), FailsWith(code, message));
    EXPECT_EQ(server_.Metric("attention_layer_bytes"), bytes);
  };
  before_pack_ = [] { throw std::bad_alloc(); };
  expect_both_fail(grpc::RESOURCE_EXHAUSTED, "out of memory");
  before_pack_ = [] { throw std::runtime_error("a bug"); };
  expect_both_fail(grpc::INTERNAL, "a bug");
  before_pack_ = nullptr;
  MustCreateLayer(server_, other, "other");
}

}  // namespace
}  // namespace attention::testing
