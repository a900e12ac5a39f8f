#include "server/observe/admin_server.h"

#include <httplib.h>

#include <thread>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace attention::server {
namespace {

constexpr char kTextType[] = "text/plain";

class HttpAdminServer final : public AdminServer {
 public:
  explicit HttpAdminServer(Pages pages) : pages_(std::move(pages)) {
    server_.Get("/metrics", [this](const httplib::Request& request, httplib::Response& response) {
      MetricsPage page = pages_.metrics(request.get_header_value("Accept"));
      response.set_content(std::move(page.body), page.content_type);
    });
    server_.Get("/healthz", [](const httplib::Request&, httplib::Response& response) {
      response.set_content("ok\n", kTextType);
    });
    server_.Get("/readyz", [this](const httplib::Request&, httplib::Response& response) {
      const bool is_ready = pages_.is_ready();
      response.status = is_ready ? 200 : 503;
      response.set_content(is_ready ? "ready\n" : "draining\n", kTextType);
    });
    // The library's default lets two servers share a port in silence.
    server_.set_socket_options([](socket_t socket) {
      const int yes = 1;
      setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
    });
    // Operators' tools ask little; the default pool would hold a thread for every core.
    server_.new_task_queue = [] { return new httplib::ThreadPool(2); };
  }

  ~HttpAdminServer() override {
    server_.stop();
    if (thread_.joinable()) thread_.join();
  }

  absl::Status Listen(const std::string& address) {
    const auto colon = address.rfind(':');
    int port = -1;
    const bool is_valid = colon != std::string::npos &&
                          absl::SimpleAtoi(address.substr(colon + 1), &port) && port >= 0 &&
                          port <= 65535;
    const std::string host = address.substr(0, colon);
    bool is_bound = false;
    if (is_valid && port == 0) {
      port = server_.bind_to_any_port(host);
      is_bound = port > 0;
    } else if (is_valid) {
      is_bound = server_.bind_to_port(host, port);
    }
    if (!is_bound) {
      return absl::UnavailableError(
          absl::StrCat("admin-listen: cannot bind ", address, ", expected a free host:port"));
    }
    address_ = absl::StrCat(host, ":", port);
    thread_ = std::thread([this] { server_.listen_after_bind(); });
    // stop() before the loop runs would be lost.
    while (!server_.is_running()) std::this_thread::yield();
    return absl::OkStatus();
  }

  const std::string& address() const override { return address_; }

 private:
  const Pages pages_;
  httplib::Server server_;
  std::string address_;
  std::thread thread_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<AdminServer>> AdminServer::Start(const std::string& address,
                                                                Pages pages) {
  auto server = std::make_unique<HttpAdminServer>(std::move(pages));
  if (absl::Status status = server->Listen(address); !status.ok()) return status;
  return server;
}

}  // namespace attention::server
