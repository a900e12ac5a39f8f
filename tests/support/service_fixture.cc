#include "tests/support/service_fixture.h"

#include <httplib.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "attention/v1/errors.pb.h"

namespace grpc {
void PrintTo(const Status& status, std::ostream* out) {
  *out << "code " << status.error_code() << " \"" << status.error_message() << "\"";
}
}  // namespace grpc

namespace attention::testing {
namespace {

std::unique_ptr<TestServer>& SharedServer() {
  static std::unique_ptr<TestServer> server;
  return server;
}

// gRPC must not outlive main's objects, so the shared server goes with the last test.
class StopSharedServer : public ::testing::Environment {
 public:
  void TearDown() override { SharedServer().reset(); }
};
[[maybe_unused]] ::testing::Environment* const kStopSharedServer =
    ::testing::AddGlobalTestEnvironment(new StopSharedServer);

absl::Duration ToAbsl(const google::protobuf::Duration& duration) {
  return absl::Seconds(duration.seconds()) + absl::Nanoseconds(duration.nanos());
}

std::unique_ptr<server::ServerApp> StartApp(const ConfigChange& change,
                                            const server::BackendFactory& factory) {
  spdlog::set_level(spdlog::level::err);
  server::ServerConfig config = TestConfig();
  if (change) change(config);
  auto app = server::ServerApp::Start(config, factory);
  if (!app.ok()) {
    std::fprintf(stderr, "the test server cannot start: %s\n", app.status().ToString().c_str());
    std::abort();
  }
  return *std::move(app);
}

// One query head over many keys: little to send, much to compute for the reference.
v1::AttendRequest SlowRequest(std::int64_t q_len) {
  return MakeAttendRequest({.num_q_heads = 1,
                            .num_kv_heads = 1,
                            .head_dim_qk = 64,
                            .head_dim_v = 64,
                            .q_lens = {q_len},
                            .kv_lens = {2048}});
}

// Queries that take about a second.
std::int64_t SecondOfQueries(ServerClient& server) {
  constexpr std::int64_t kProbe = 8;
  v1::AttendResponse response;
  const grpc::Status status = Attend(server, SlowRequest(kProbe), &response);
  EXPECT_TRUE(status.ok()) << status.error_message();
  const double seconds = absl::ToDoubleSeconds(ToAbsl(response.timing().compute()));
  return std::clamp(static_cast<std::int64_t>(kProbe / std::max(seconds, 1e-5)), std::int64_t{16},
                    std::int64_t{8192});
}

}  // namespace

server::ServerConfig TestConfig() {
  server::ServerConfig config;
  config.listen = {"127.0.0.1:0"};
  config.admin_listen = "127.0.0.1:0";
  config.threads = 2;
  config.kv_capacity_bytes = std::int64_t{64} << 20;
  return config;
}

ServerClient::ServerClient(std::string address, std::string admin_address)
    : address_(std::move(address)), admin_address_(std::move(admin_address)) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  // Servers of one binary come and go on recycled ports; a shared connection would mix them up.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  channel_ = grpc::CreateCustomChannel(address_, grpc::InsecureChannelCredentials(), arguments);
  attention_ = v1::AttentionService::NewStub(channel_);
  sessions_ = v1::SessionService::NewStub(channel_);
  info_ = v1::ServerService::NewStub(channel_);
}

std::shared_ptr<client::Client> ServerClient::NewClient(const std::string& tenant) const {
  client::ClientOptions options;
  options.targets = {address_};
  options.tenant = tenant;
  options.retry_policy = client::RetryPolicy::None();
  auto client = client::Client::Connect(options);
  EXPECT_TRUE(client.ok()) << client.status();
  return *std::move(client);
}

ServerClient::Page ServerClient::Get(const std::string& path) const {
  httplib::Client http("http://" + admin_address_);
  const auto page = http.Get(path);
  if (!page) return {};
  return {page->status, page->body};
}

double ServerClient::Metric(const std::string& sample) const {
  const std::string page = Get("/metrics").body;
  for (absl::string_view line : absl::StrSplit(page, '\n')) {
    const auto space = line.rfind(' ');
    if (space == absl::string_view::npos || line.substr(0, space) != sample) continue;
    double value = 0;
    EXPECT_TRUE(absl::SimpleAtod(line.substr(space + 1), &value)) << line;
    return value;
  }
  ADD_FAILURE() << "/metrics has no sample " << sample;
  return 0;
}

TestServer::TestServer(const ConfigChange& change, const server::BackendFactory& factory)
    : TestServer(StartApp(change, factory)) {}

TestServer::TestServer(std::unique_ptr<server::ServerApp> app)
    : ServerClient(app->addresses().front(), app->admin_address()), app_(std::move(app)) {}

TestServer& ServiceFixture::shared_server() {
  if (SharedServer() == nullptr) SharedServer() = std::make_unique<TestServer>();
  return *SharedServer();
}

std::unique_ptr<grpc::ClientContext> NewContext(const std::string& tenant, absl::Duration timeout) {
  auto context = std::make_unique<grpc::ClientContext>();
  context->set_deadline(std::chrono::system_clock::now() + absl::ToChronoMilliseconds(timeout));
  if (!tenant.empty()) context->AddMetadata("attention-tenant", tenant);
  return context;
}

grpc::Status Attend(ServerClient& server, const v1::AttendRequest& request,
                    v1::AttendResponse* response) {
  const auto context = NewContext();
  return server.attention().Attend(context.get(), request, response);
}

v1::AttendResponse MustAttend(ServerClient& server, const v1::AttendRequest& request) {
  v1::AttendResponse response;
  const grpc::Status status = Attend(server, request, &response);
  EXPECT_TRUE(status.ok()) << status.error_code() << " " << status.error_message();
  if (status.ok()) {
    EXPECT_EQ(FindMismatch(request, response), "");
  }
  return response;
}

void ExpectServes(ServerClient& server) {
  SCOPED_TRACE("the next good request");
  MustAttend(server, MakeAttendRequest({.q_lens = {2}, .kv_lens = {5}}));
}

bool WaitUntil(const std::function<bool()>& condition, absl::Duration timeout) {
  const auto end = std::chrono::steady_clock::now() + absl::ToChronoMilliseconds(timeout);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return true;
}

ErrorDetails DetailsOf(const grpc::Status& status) {
  ErrorDetails details;
  if (status.error_details().empty()) return details;
  v1::StatusDetails wire;
  EXPECT_TRUE(wire.ParseFromString(status.error_details()));
  EXPECT_EQ(wire.code(), static_cast<int>(status.error_code()));
  EXPECT_EQ(wire.message(), status.error_message());
  for (const google::protobuf::Any& any : wire.details()) {
    if (any.type_url() == "type.googleapis.com/google.rpc.ErrorInfo") {
      v1::ErrorInfo info;
      EXPECT_TRUE(info.ParseFromString(any.value()));
      details.reason = info.reason();
      details.domain = info.domain();
      details.metadata = {info.metadata().begin(), info.metadata().end()};
    } else if (any.type_url() == "type.googleapis.com/google.rpc.RetryInfo") {
      v1::RetryInfo retry;
      EXPECT_TRUE(retry.ParseFromString(any.value()));
      details.retry_delay = ToAbsl(retry.retry_delay());
    } else {
      ADD_FAILURE() << "unexpected detail " << any.type_url();
    }
  }
  return details;
}

int CodeOf(const grpc::Status& status) { return status.error_code(); }
int CodeOf(const v1::StreamError& error) { return error.code(); }
std::string MessageOf(const grpc::Status& status) { return status.error_message(); }
std::string MessageOf(const v1::StreamError& error) { return error.message(); }
std::string ReasonOf(const grpc::Status& status) { return DetailsOf(status).reason; }
std::string ReasonOf(const v1::StreamError& error) { return error.reason(); }

ConfigChange SlowBackend(const ConfigChange& change) {
  return [change](server::ServerConfig& config) {
    config.backend = "reference";
    config.max_batch_requests = 1;
    // Neither in slices, between which others run, nor on the thread that receives calls.
    config.max_batch_work = config.max_contended_batch_work = absl::Hours(1);
    config.max_inline_work = absl::ZeroDuration();
    if (change) change(config);
  };
}

BusyWorker::BusyWorker(ServerClient& server)
    : server_(server), request_(SlowRequest(SecondOfQueries(server))) {
  constexpr char kBatches[] = "attention_batch_requests_count";
  const double before = server_.Metric(kBatches);
  call_ = std::async(std::launch::async, [this] { return Attend(server_, request_, &response_); });
  EXPECT_TRUE(WaitUntil([&] { return server_.Metric(kBatches) > before; }));
}

BusyWorker::~BusyWorker() {
  if (call_.valid()) call_.wait();
}

void BusyWorker::Finish() {
  const grpc::Status status = call_.get();
  EXPECT_TRUE(status.ok()) << status.error_message();
  // The reference on the server's side is the oracle itself: a few rows say as much as all.
  EXPECT_EQ(response_.output().shape(0), request_.q().shape(0));
}

}  // namespace attention::testing
