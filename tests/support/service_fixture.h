// A real server in this process, on ports that the system picks, with raw stubs and an SDK client.
//
// Starting one measures the machine for a third of a second, so the tests of a binary share one;
// a test that needs another configuration starts its own. Everything that waits is bounded.
#pragma once

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>

#include <functional>
#include <future>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "absl/time/time.h"
#include "attention/client/client.h"
#include "attention/v1/attention_service.grpc.pb.h"
#include "attention/v1/server_service.grpc.pb.h"
#include "attention/v1/session_service.grpc.pb.h"
#include "server/config/server_config.h"
#include "server/server_app.h"
#include "tests/support/wire_oracle.h"

namespace grpc {
// For GoogleTest, which would print bytes.
void PrintTo(const Status& status, std::ostream* out);
}  // namespace grpc

namespace attention::testing {

// Free ports, two compute threads, 64 MiB for KV pages.
server::ServerConfig TestConfig();

using ConfigChange = std::function<void(server::ServerConfig&)>;

// A server as its clients and its operator see it, wherever it runs.
class ServerClient {
 public:
  ServerClient(std::string address, std::string admin_address);
  ServerClient(const ServerClient&) = delete;
  ServerClient& operator=(const ServerClient&) = delete;

  const std::string& address() const { return address_; }
  const std::string& admin_address() const { return admin_address_; }

  v1::AttentionService::Stub& attention() { return *attention_; }
  v1::SessionService::Stub& sessions() { return *sessions_; }
  v1::ServerService::Stub& info() { return *info_; }
  std::shared_ptr<grpc::Channel> channel() { return channel_; }
  // An SDK client that does not retry, so that every refusal is seen.
  std::shared_ptr<client::Client> NewClient(const std::string& tenant = "default") const;

  // A page of the admin port. Status 0: it cannot be reached.
  struct Page {
    int status = 0;
    std::string body;
  };
  Page Get(const std::string& path) const;
  // A sample of /metrics by its full name, labels included; fails the test when it is not there.
  double Metric(const std::string& sample) const;

 private:
  const std::string address_;
  const std::string admin_address_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::AttentionService::Stub> attention_;
  std::unique_ptr<v1::SessionService::Stub> sessions_;
  std::unique_ptr<v1::ServerService::Stub> info_;
};

// A server in this process. Stops with the object.
class TestServer : public ServerClient {
 public:
  // Ends the process with the reason when the server cannot start.
  explicit TestServer(const ConfigChange& change = nullptr,
                      const server::BackendFactory& factory = MakeBackend);

  // As on SIGTERM.
  void DrainAndStop() { app_->DrainAndStop(); }

 private:
  explicit TestServer(std::unique_ptr<server::ServerApp> app);

  std::unique_ptr<server::ServerApp> app_;
};

// The server that the tests of a binary share; stopped when they are done.
class ServiceFixture : public ::testing::Test {
 protected:
  static TestServer& shared_server();
};

// How long any single call may take.
inline constexpr absl::Duration kCallTimeout = absl::Seconds(60);

// A context with a deadline and, unless empty, the tenant's name.
std::unique_ptr<grpc::ClientContext> NewContext(const std::string& tenant = "",
                                                absl::Duration timeout = kCallTimeout);

grpc::Status Attend(ServerClient& server, const v1::AttendRequest& request,
                    v1::AttendResponse* response);

// A good request, answered right. Shows that the server goes on.
void ExpectServes(ServerClient& server);

// The answer of a good request; fails the test when the server refuses it or answers wrong.
v1::AttendResponse MustAttend(ServerClient& server, const v1::AttendRequest& request);

// Polls until `condition` holds; false when it does not within `timeout`.
bool WaitUntil(const std::function<bool()>& condition, absl::Duration timeout = absl::Seconds(30));

// The details of a status beside code and message.
struct ErrorDetails {
  std::string reason;
  std::string domain;
  std::map<std::string, std::string> metadata;
  std::optional<absl::Duration> retry_delay;
};
ErrorDetails DetailsOf(const grpc::Status& status);

int CodeOf(const grpc::Status& status);
int CodeOf(const v1::StreamError& error);
std::string MessageOf(const grpc::Status& status);
std::string MessageOf(const v1::StreamError& error);
std::string ReasonOf(const grpc::Status& status);
std::string ReasonOf(const v1::StreamError& error);

// Matches a grpc::Status (or StreamError) by code and a part of the message.
MATCHER_P2(FailsWith, code, message_part, "") {
  const int actual = static_cast<int>(CodeOf(arg));
  const std::string message = MessageOf(arg);
  *result_listener << "which has code " << actual << " and says: " << message;
  return actual == static_cast<int>(code) && message.find(message_part) != std::string::npos;
}
// The same by code and reason.
MATCHER_P2(FailsBecause, code, reason, "") {
  const int actual = static_cast<int>(CodeOf(arg));
  *result_listener << "which has code " << actual << ", reason '" << ReasonOf(arg)
                   << "' and says: " << MessageOf(arg);
  return actual == static_cast<int>(code) && ReasonOf(arg) == reason;
}

// A server that computes slowly (the float64 reference), for tests that need a busy worker.
ConfigChange SlowBackend(const ConfigChange& change = nullptr);

// Keeps the worker of a slow server busy: Start returns when the work has begun, which then takes
// about a second on this machine.
class BusyWorker {
 public:
  explicit BusyWorker(ServerClient& server);
  ~BusyWorker();

  // Waits for the answer, which is checked.
  void Finish();

 private:
  ServerClient& server_;
  v1::AttendRequest request_;
  v1::AttendResponse response_;
  std::future<grpc::Status> call_;
};

}  // namespace attention::testing
