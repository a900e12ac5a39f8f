// The limits of each tenant: at every one of them at once, changed while the server runs, and
// nothing of one tenant in the memory of another. The server's own layers.
#include <csignal>
#include <cstdio>
#include <fstream>
#include <thread>

#include "tests/support/layer_driver.h"
#include "tests/support/server_process.h"
#include "tests/support/session_driver.h"
#include "tests/support/tensor_file.h"

namespace attention::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::Optional;

constexpr auto kExhausted = grpc::RESOURCE_EXHAUSTED;
constexpr char kQuota[] = "QUOTA_EXCEEDED";

grpc::Status Create(ServerClient& server, const std::string& tenant) {
  v1::CreateSessionResponse response;
  return server.sessions().CreateSession(NewContext(tenant).get(), MakeCreateRequest({}),
                                         &response);
}

grpc::Status AttendAs(ServerClient& server, const std::string& tenant,
                      const v1::AttendRequest& request, const std::string& priority = "") {
  const auto context = NewContext(tenant);
  if (!priority.empty()) context->AddMetadata("attention-priority", priority);
  v1::AttendResponse response;
  return server.attention().Attend(context.get(), request, &response);
}

// --- At the limits ---

class TenantLimitsTest : public ::testing::Test {
 protected:
  // A server with a file of limits.
  ConfigChange WithLimits(const std::string& text, const ConfigChange& change = nullptr) {
    return [path = folder_.Write("limits.toml", text), change](server::ServerConfig& config) {
      config.tenant_limits = path;
      if (change) change(config);
    };
  }

  TestFolder folder_;
};

// Calls that must be answered right, one after another, until it is gone.
class VerifiedLoad {
 public:
  explicit VerifiedLoad(ServerClient& server) : thread_([this, &server] { Run(server); }) {}
  ~VerifiedLoad() {
    stop_.store(true);
    thread_.join();
    EXPECT_GT(num_rounds_, 0);
  }

 private:
  void Run(ServerClient& server) {
    const v1::AttendRequest prompt = MakePrompt(40);
    do {
      MustAttend(server, prompt);
      const v1::SessionHandle session = MustCreate(server).handle();
      EXPECT_EQ(FindMismatch(prompt, Feed(server, prompt, session, 9)), "");
      EXPECT_TRUE(Delete(server, session).ok());
      ++num_rounds_;
    } while (!stop_.load());
  }

  std::atomic<bool> stop_{false};
  int num_rounds_ = 0;
  std::thread thread_;
};

TEST_F(TenantLimitsTest, ATenantAtEveryLimitAtOnceDisturbsNobody) {
  TestServer server(WithLimits(R"(
[tenant.greedy]
kv-bytes = "16KiB"          # less than a page
layer-bytes = 1
sessions = 2
streams = 1
queued-bytes = "64KiB"
work-rate = 0.000001
highest-priority = "normal"
)"));
  const v1::AttendRequest prompt = MakePrompt(20);
  const std::string greedy = "greedy";
  {
    VerifiedLoad load(server);
    EXPECT_THAT(AttendAs(server, greedy, prompt, "high"),
                FailsBecause(grpc::PERMISSION_DENIED, "PRIORITY_NOT_ALLOWED"));
    const v1::SessionHandle session = MustCreate(server, {}, greedy).handle();
    MustCreate(server, {}, greedy);
    EXPECT_THAT(Create(server, greedy), FailsBecause(kExhausted, kQuota));
    EXPECT_THAT(Upload(server, UploadOf(MakeLayer(SmallLayerConfig(), 1), "mine"), nullptr, greedy),
                FailsBecause(kExhausted, kQuota));
    // An upload is a stream as well.
    const std::string num_streams = "attention_tenant_streams{tenant=\"greedy\"}";
    ASSERT_TRUE(WaitUntil(
        [&] { return server.Get("/metrics").body.find(num_streams) == std::string::npos; }));
    const auto context = NewContext(greedy);
    const auto open = server.sessions().StepStream(context.get());
    ASSERT_TRUE(WaitUntil(
        [&] { return server.Get("/metrics").body.find(num_streams + " 1") != std::string::npos; }));
    const auto second_context = NewContext(greedy);
    const auto second = server.sessions().StepStream(second_context.get());
    const grpc::Status no_stream = second->Finish();
    EXPECT_THAT(no_stream, FailsBecause(kExhausted, kQuota));
    EXPECT_THAT(no_stream, FailsWith(kExhausted, "holds 1 open streams, and 1 more"));
    EXPECT_TRUE(DetailsOf(no_stream).retry_delay.has_value());
    const grpc::Status no_room = AttendAs(server, greedy, MakePrompt(1000));
    EXPECT_THAT(no_room, FailsWith(kExhausted, "its limit queued-bytes (65536)"));
    EXPECT_FALSE(DetailsOf(no_room).retry_delay.has_value()) << "waiting does not help";
    // The first work is taken, and runs into the limit of pages; for more it is soon too early.
    const v1::SessionStepResult step = RunStep(server, MakeAppend(prompt, session, 0, 20), greedy);
    EXPECT_THAT(step.error(), FailsBecause(kExhausted, kQuota));
    EXPECT_THAT(step.error(), FailsWith(kExhausted, "its limit kv-bytes (16384)"));
    grpc::Status too_fast;
    for (int i = 0; i < 1000 && too_fast.ok(); ++i) too_fast = AttendAs(server, greedy, prompt);
    EXPECT_THAT(too_fast, FailsWith(kExhausted, "its limit work-rate"));
    EXPECT_TRUE(DetailsOf(too_fast).retry_delay.has_value());
    context->TryCancel();
  }
  const std::string metrics = server.Get("/metrics").body;
  for (const char* limit : {"kv-bytes", "layer-bytes", "sessions", "streams", "queued-bytes",
                            "work-rate", "highest-priority"}) {
    EXPECT_THAT(
        metrics,
        HasSubstr(std::string("attention_tenant_refusals_total{tenant=\"greedy\",limit=\"") +
                  limit + "\"}"));
  }
  EXPECT_THAT(metrics, HasSubstr("attention_tenant_sessions{tenant=\"greedy\"} 2"));
  EXPECT_THAT(metrics, Not(HasSubstr("attention_tenant_refusals_total{tenant=\"default\"")));
  ExpectServes(server);
}

TEST_F(TenantLimitsTest, AskingForNothingIsServedAtTheHighestThatATenantMay) {
  TestServer server(WithLimits("[default]\nhighest-priority = \"low\"\n"));
  EXPECT_TRUE(AttendAs(server, "a", MakePrompt(3)).ok());
  EXPECT_TRUE(AttendAs(server, "a", MakePrompt(3), "low").ok());
  EXPECT_THAT(AttendAs(server, "a", MakePrompt(3), "normal"),
              FailsWith(grpc::PERMISSION_DENIED,
                        "metadata attention-priority is normal, expected at most low, the limit "
                        "highest-priority of tenant 'a'"));
}

// Without a file: nearly all pages for one tenant, and room for the next.
TEST_F(TenantLimitsTest, NobodyTakesAllPagesUnlessToldSo) {
  const auto fill = [](ServerClient& server) {
    const v1::SessionHandle session = MustCreate(server, {}, "greedy").handle();
    const v1::AttendRequest prompt = MakePrompt(64);
    std::int64_t length = 0;
    for (;; length += 64) {
      v1::SessionStep step = MakeAppend(prompt, session, 0, 64);
      step.set_expected_position(length);
      const v1::SessionStepResult result = RunStep(server, step, "greedy");
      if (result.has_error()) {
        EXPECT_EQ(CodeOf(result.error()), kExhausted) << MessageOf(result.error());
        return std::pair(length / 64, ReasonOf(result.error()));
      }
    }
  };
  const ConfigChange small = [](server::ServerConfig& config) {
    config.kv_capacity_bytes = std::int64_t{8} << 20;  // 256 pages
  };
  TestServer server(small);
  EXPECT_EQ(fill(server), std::pair(std::int64_t{230}, std::string(kQuota)));
  ExpectServes(server);
  EXPECT_EQ(
      FindMismatch(MakePrompt(70), Feed(server, MakePrompt(70), MustCreate(server).handle(), 70)),
      "");
  TestServer alone(WithLimits("[tenant.greedy]\nkv-bytes = \"none\"\n", small));
  EXPECT_EQ(fill(alone), std::pair(std::int64_t{256}, std::string("KV_EXHAUSTED")));
}

TEST_F(TenantLimitsTest, ATenantSeesItsOwnLimitsAndOnlyAdministratorsOthers) {
  TestServer server(WithLimits("[tenant.a]\nsessions = 3\nwork-rate = 0.5\n"));
  MustCreate(server, {}, "a");
  v1::GetTenantLimitsRequest request;
  v1::GetTenantLimitsResponse response;
  ASSERT_TRUE(server.info().GetTenantLimits(NewContext("a").get(), request, &response).ok());
  EXPECT_EQ(response.tenant(), "a");
  EXPECT_TRUE(response.is_listed());
  EXPECT_EQ(response.limits().sessions(), 3);
  EXPECT_EQ(response.limits().work_rate(), 0.5);
  EXPECT_EQ(response.limits().kv_bytes(), (std::int64_t{64} << 20) / 10 * 9 + 4);
  EXPECT_EQ(response.limits().highest_priority(), "high");
  EXPECT_EQ(response.use().sessions(), 1);
  request.set_tenant("a");
  EXPECT_THAT(server.info().GetTenantLimits(NewContext("b").get(), request, &response),
              FailsBecause(grpc::PERMISSION_DENIED, "ROLE_REQUIRED"));
  v1::SetTenantLimitsRequest change;
  v1::SetTenantLimitsResponse changed;
  EXPECT_THAT(server.info().SetTenantLimits(NewContext("a").get(), change, &changed),
              FailsBecause(grpc::PERMISSION_DENIED, "ROLE_REQUIRED"));
}

// --- Reading the file again ---

TEST_F(TenantLimitsTest, TheFileIsReadAgainOnSighupAndKeptAsItWasWhenItIsWrong) {
  const std::string path = folder_.Write("limits.toml", "[tenant.a]\nsessions = 1\n");
  ServerProcess process({"--tenant-limits=" + path});
  ServerClient& client = process.client();
  const auto signal = [&](const std::string& text, const std::string& log) {
    folder_.Write("limits.toml", text);
    process.Signal(SIGHUP);
    EXPECT_TRUE(WaitUntil([&] { return process.Log().find(log) != std::string::npos; }))
        << process.Log();
  };
  EXPECT_TRUE(Create(client, "a").ok());
  EXPECT_THAT(Create(client, "a"), FailsWith(kExhausted, "its limit sessions (1)"));
  signal("[tenant.a]\nsessions = 2\n", "limits of 1 tenants");
  EXPECT_TRUE(Create(client, "a").ok());
  signal("[tenant.a]\nsessions = 3\nsesions = 4\n",
         "limits.toml, line 3: tenant.'a'.'sesions' is no key");
  EXPECT_THAT(Create(client, "a"), FailsWith(kExhausted, "its limit sessions (2)"));
  signal("[tenant.b]\nsessions = 0\n[tenant.c]\n", "limits of 2 tenants");
  EXPECT_TRUE(Create(client, "a").ok()) << "it is not listed any more";
  EXPECT_THAT(Create(client, "b"), FailsWith(kExhausted, "its limit sessions (0)"));
  std::remove(path.c_str());
  process.Signal(SIGHUP);
  EXPECT_TRUE(WaitUntil([&] { return process.Log().find("cannot be read") != std::string::npos; }));
  EXPECT_THAT(Create(client, "b"), FailsWith(kExhausted, "its limit sessions (0)"));
  ExpectServes(client);
  process.Signal(SIGTERM);
  EXPECT_THAT(process.WaitForExit(), Optional(0));
}

TEST_F(TenantLimitsTest, CallsGoOnWhileTheFileIsReadAgainAndAgain) {
  const std::string path = folder_.Write("limits.toml", "[tenant.a]\nshare = 1\n");
  ServerProcess process({"--tenant-limits=" + path});
  {
    VerifiedLoad load(process.client());
    for (int i = 1; i <= 20; ++i) {
      // In one piece, as an operator should.
      folder_.Write("next.toml", "[tenant.default]\nshare = " + std::to_string(i) + "\n");
      ASSERT_EQ(std::rename((path.substr(0, path.rfind('/')) + "/next.toml").c_str(), path.c_str()),
                0);
      process.Signal(SIGHUP);
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
  }
  EXPECT_THAT(process.Log(), Not(HasSubstr("line")));
}

TEST_F(TenantLimitsTest, AServerDoesNotStartWithAWrongFile) {
  const std::string path = folder_.Write("limits.toml", "[default]\nkv-bytes = \"1GB\"\n");
  ServerProcess process({"--tenant-limits=" + path});
  EXPECT_THAT(process.WaitForExit(), Optional(1));
  EXPECT_THAT(process.Log(), HasSubstr("limits.toml, line 2: default.kv-bytes is"));
}

TEST_F(TenantLimitsTest, WithoutAFileTheSignalChangesNothing) {
  ServerProcess process;
  ExpectServes(process.client());
  process.Signal(SIGHUP);
  EXPECT_TRUE(WaitUntil([&] { return process.Log().find("SIGHUP") != std::string::npos; }));
  ExpectServes(process.client());
}

// --- Nothing of another tenant ---

// A tenant fills its pages, buffers and results with a pattern and goes. Whoever gets the memory
// next has the answers that a server gives whose memory nobody had before.
TEST_F(TenantLimitsTest, MemoryThatChangesHandsCarriesNothing) {
  const ConfigChange small = [](server::ServerConfig& config) {
    config.kv_capacity_bytes = std::int64_t{4} << 20;
  };
  TestServer used(small), fresh(small);
  v1::AttendRequest poison = MakePrompt(500);
  for (v1::Tensor* tensor : {poison.mutable_q(), poison.mutable_k(), poison.mutable_v()}) {
    for (std::int64_t i = 0; i < NumElements(*tensor); ++i) {
      SetElement(tensor, i, std::numeric_limits<float>::quiet_NaN());
    }
  }
  for (int i = 0; i < 3; ++i) {
    const v1::SessionHandle session = MustCreate(used, {.num_layers = 4}, "a").handle();
    for (int layer = 0; layer < 4; ++layer) {
      RunStep(used, MakeStep(poison, session, 0, 500, layer), "a");
    }
    EXPECT_TRUE(Delete(used, session, "a").ok());
    AttendAs(used, "a", poison);
  }
  v1::AttendRequest prompt = MakePrompt(70);
  prompt.mutable_returns()->set_lse(true);
  prompt.mutable_returns()->set_column_sums(true);
  for (const std::int64_t chunk : {1, 7, 64, 70}) {
    const auto feed = [&](ServerClient& server) {
      return Feed(server, prompt, MustCreate(server).handle(), chunk);
    };
    EXPECT_TRUE(SameAnswer(feed(used), feed(fresh))) << chunk;
  }
  EXPECT_TRUE(SameAnswer(MustAttend(used, prompt), MustAttend(fresh, prompt)));
}

// --- The server's own layers ---

TEST_F(TenantLimitsTest, TenantsUseTheServersLayersAndCannotChangeThem) {
  folder_.WriteModel();
  const std::string entry =
      R"("file":"model.safetensors","model_dim":2,"num_q_heads":2,"head_dim_qk":1,)"
      R"("tensors":{"w_q":"w0","w_k":"w1","w_v":"w2","w_o":"w3"}})";
  const std::string path =
      folder_.Write("layers.json", R"({"layers":[{"layer_id":"all",)" + entry +
                                       R"(,{"layer_id":"some","tenants":["a"],)" + entry + "]}");
  TestServer server([&](server::ServerConfig& config) { config.preload_layers = path; });
  const auto stub = LayerStub(server);
  const auto get = [&](const std::string& tenant, const std::string& id) {
    v1::GetLayerRequest request;
    request.set_layer_id(id);
    v1::GetLayerResponse response;
    return stub->GetLayer(NewContext(tenant).get(), request, &response);
  };
  EXPECT_TRUE(get("a", "all").ok());
  EXPECT_TRUE(get("a", "some").ok());
  EXPECT_TRUE(get("b", "all").ok());
  EXPECT_THAT(get("b", "some"), FailsBecause(grpc::NOT_FOUND, "LAYER_NOT_FOUND"));

  const auto convert = [&](const std::string& tenant, const std::string& to) {
    v1::ConvertLayerRequest request;
    request.set_source_layer_id("all");
    request.set_layer_id(to);
    request.set_num_kv_heads(1);
    v1::ConvertLayerResponse response;
    return stub->ConvertLayer(NewContext(tenant).get(), request, &response);
  };
  const auto remove = [&](const std::string& tenant, const std::string& id) {
    v1::DeleteLayerRequest request;
    request.set_layer_id(id);
    v1::DeleteLayerResponse response;
    return stub->DeleteLayer(NewContext(tenant).get(), request, &response);
  };
  EXPECT_THAT(remove("a", "all"), FailsBecause(grpc::PERMISSION_DENIED, "LAYER_READ_ONLY"));
  EXPECT_THAT(convert("a", "all"), FailsBecause(grpc::PERMISSION_DENIED, "LAYER_READ_ONLY"));
  EXPECT_THAT(Upload(server, UploadOf(MakeLayer(SmallLayerConfig(), 1), "all"), nullptr, "a"),
              FailsBecause(grpc::PERMISSION_DENIED, "LAYER_READ_ONLY"));
  EXPECT_TRUE(remove("b", "some").ok()) << "nothing that it can see";
  EXPECT_TRUE(get("a", "some").ok());
  EXPECT_TRUE(convert("a", "mine").ok());
  EXPECT_TRUE(remove("a", "mine").ok());

  const auto list = [&](const std::string& tenant) {
    v1::ListLayersResponse response;
    EXPECT_TRUE(stub->ListLayers(NewContext(tenant).get(), {}, &response).ok());
    std::vector<std::string> ids;
    for (const v1::Layer& layer : response.layers()) ids.push_back(layer.layer_id());
    return ids;
  };
  EXPECT_THAT(list("a"), ElementsAre("all", "some"));
  EXPECT_THAT(list("b"), ElementsAre("all"));
  v1::GetServerInfoResponse info;
  ASSERT_TRUE(server.info().GetServerInfo(NewContext("a").get(), {}, &info).ok());
  EXPECT_EQ(info.capacity().layer_bytes(), 0) << "they count for nobody";
  EXPECT_EQ(info.capacity().num_layers(), 0);
}

}  // namespace
}  // namespace attention::testing
