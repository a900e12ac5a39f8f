#include "server/observe/admin_server.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <httplib.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <memory>
#include <new>
#include <string>
#include <vector>

namespace attention::server {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

class AdminServerTest : public ::testing::Test {
 protected:
  AdminServerTest() {
    auto server = AdminServer::Start(
        "127.0.0.1:0", {[this](std::string_view accept) {
                          if (is_memory_out_) throw std::bad_alloc();
                          return MetricsPage{"text/plain", "accepts " + std::string(accept)};
                        },
                        [this] { return not_ready_; }, [this] { return not_alive_; }});
    EXPECT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }

  httplib::Result Get(const std::string& path, const httplib::Headers& headers = {}) const {
    httplib::Client client("http://" + server_->address());
    client.set_read_timeout(20);
    return client.Get(path.c_str(), headers);
  }

  std::atomic<bool> is_memory_out_ = false;
  std::string not_ready_;
  std::string not_alive_;
  std::unique_ptr<AdminServer> server_;
};

// A connection that sends some bytes and then waits, forever.
class HangingClient {
 public:
  HangingClient(const std::string& address, const std::string& bytes)
      : fd_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in to{};
    to.sin_family = AF_INET;
    to.sin_port =
        htons(static_cast<std::uint16_t>(std::stoi(address.substr(address.rfind(':') + 1))));
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(connect(fd_, reinterpret_cast<const sockaddr*>(&to), sizeof(to)), 0);
    Send(bytes);
  }
  ~HangingClient() { close(fd_); }
  HangingClient(const HangingClient&) = delete;
  HangingClient& operator=(const HangingClient&) = delete;

  void Send(const std::string& bytes) const {
    (void)send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
  }
  std::string Receive() const {
    char bytes[4096];
    const ssize_t size = recv(fd_, bytes, sizeof(bytes), 0);
    return size > 0 ? std::string(bytes, static_cast<std::size_t>(size)) : "";
  }

 private:
  const int fd_;
};

TEST_F(AdminServerTest, APageThatMemoryIsOutForCostsItsConnectionOnly) {
  is_memory_out_ = true;
  EXPECT_FALSE(Get("/metrics"));
  EXPECT_EQ(Get("/healthz")->status, 200);
  is_memory_out_ = false;
  EXPECT_EQ(Get("/metrics")->status, 200);
}

TEST_F(AdminServerTest, ProbesSayWhyNot) {
  EXPECT_EQ(Get("/readyz")->status, 200);
  EXPECT_EQ(Get("/readyz")->body, "ready\n");
  EXPECT_EQ(Get("/healthz")->body, "ok\n");
  not_ready_ = "draining";
  EXPECT_EQ(Get("/readyz")->status, 503);
  EXPECT_EQ(Get("/readyz")->body, "draining\n");
  EXPECT_EQ(Get("/healthz")->status, 200);
  not_alive_ = "nobody answers at 127.0.0.1:7070";
  EXPECT_EQ(Get("/healthz")->status, 503);
  EXPECT_EQ(Get("/healthz")->body, "nobody answers at 127.0.0.1:7070\n");
}

TEST_F(AdminServerTest, MetricsComeAsTheScraperAcceptsThem) {
  EXPECT_EQ(Get("/metrics", {{"Accept", "text/x"}})->body, "accepts text/x");
  EXPECT_EQ(Get("/metrics")->status, 200);
}

TEST_F(AdminServerTest, OtherPagesAndMethodsAreRefused) {
  EXPECT_EQ(Get("/")->status, 404);
  httplib::Client client("http://" + server_->address());
  EXPECT_EQ(client.Post("/healthz", "x", "text/plain")->status, 405);
  EXPECT_EQ(client.Head("/healthz")->status, 200);
}

TEST_F(AdminServerTest, KeptAndSlowConnectionsHoldUpNobody) {
  const std::string request = "GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n";
  std::vector<std::unique_ptr<HangingClient>> hanging;
  for (int i = 0; i < 50; ++i) {
    hanging.push_back(std::make_unique<HangingClient>(server_->address(), request));
    EXPECT_THAT(hanging.back()->Receive(), StartsWith("HTTP/1.1 200"));
    hanging.push_back(std::make_unique<HangingClient>(server_->address(), request.substr(0, 9)));
  }
  ASSERT_TRUE(Get("/healthz")) << "no answer in 20 s";
  EXPECT_EQ(Get("/healthz")->status, 200);
  hanging[0]->Send(request);  // those that were served and kept are served again
  EXPECT_THAT(hanging[0]->Receive(), HasSubstr("200"));
  // More than are kept: the oldest make room.
  for (int i = 0; i < 400; ++i) {
    hanging.push_back(std::make_unique<HangingClient>(server_->address(), "GET"));
  }
  ASSERT_TRUE(Get("/healthz")) << "no answer in 20 s";
}

TEST_F(AdminServerTest, WhyItCannotListenIsSaid) {
  const auto second = AdminServer::Start(server_->address(), {});
  EXPECT_THAT(second.status().message(),
              HasSubstr("admin-listen: cannot bind " + server_->address() + ": port "));
}

}  // namespace
}  // namespace attention::server
