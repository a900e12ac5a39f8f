#include "server/observe/admin_server.h"

#include <fcntl.h>
#include <microhttpd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <list>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/base/contain_exceptions.h"
#include "server/listener/listen_socket.h"

namespace attention::server {
namespace {

constexpr char kTextType[] = "text/plain; charset=utf-8";

// Far more than probes and scrapers keep open.
constexpr std::size_t kMaxConnections = 128;
// The library's own bound, at which it no longer accepts: never reached.
constexpr unsigned kLibraryMaxConnections = 2 * kMaxConnections;
constexpr unsigned kIdleTimeoutSeconds = 30;

struct Page {
  unsigned status = MHD_HTTP_OK;
  std::string content_type = kTextType;
  std::string body;
};

Page ProbePage(const std::string& problem, const char* well) {
  if (problem.empty()) return {MHD_HTTP_OK, kTextType, absl::StrCat(well, "\n")};
  return {MHD_HTTP_SERVICE_UNAVAILABLE, kTextType, absl::StrCat(problem, "\n")};
}

MHD_Result Send(MHD_Connection* connection, Page page) {
  MHD_Response* response =
      MHD_create_response_from_buffer(page.body.size(), page.body.data(), MHD_RESPMEM_MUST_COPY);
  if (response == nullptr) return MHD_NO;
  MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE, page.content_type.c_str());
  const MHD_Result result = MHD_queue_response(connection, page.status, response);
  MHD_destroy_response(response);
  return result;
}

// One listening socket's connections, served by one thread, which alone calls the members.
class Daemon {
 public:
  explicit Daemon(const AdminServer::Pages& pages) : pages_(pages) {}
  ~Daemon() {
    if (daemon_ != nullptr) MHD_stop_daemon(daemon_);
  }
  Daemon(const Daemon&) = delete;
  Daemon& operator=(const Daemon&) = delete;

  bool Start(const ListenSocket& socket) {
    const int fd = fcntl(socket.fd(), F_DUPFD_CLOEXEC, 0);  // the library closes its own
    if (fd < 0) return false;
    daemon_ =
        MHD_start_daemon(MHD_USE_EPOLL_INTERNAL_THREAD, 0, nullptr, nullptr, &OnRequest, this,
                         MHD_OPTION_LISTEN_SOCKET, fd, MHD_OPTION_NOTIFY_CONNECTION, &OnConnection,
                         this, MHD_OPTION_CONNECTION_LIMIT, kLibraryMaxConnections,
                         MHD_OPTION_CONNECTION_TIMEOUT, kIdleTimeoutSeconds, MHD_OPTION_END);
    if (daemon_ == nullptr) close(fd);
    return daemon_ != nullptr;
  }

 private:
  static MHD_Result OnRequest(void* self, MHD_Connection* connection, const char* path,
                              const char* method, const char*, const char*, std::size_t*,
                              void** was_seen) {
    const std::string_view verb = method;
    if (verb != MHD_HTTP_METHOD_GET && verb != MHD_HTTP_METHOD_HEAD) {
      return Send(connection, {MHD_HTTP_METHOD_NOT_ALLOWED, kTextType, "expected GET\n"});
    }
    // The first call is for the headers; who answers it ends the connection.
    if (*was_seen == nullptr) {
      *was_seen = self;
      return MHD_YES;
    }
    const char* accept =
        MHD_lookup_connection_value(connection, MHD_HEADER_KIND, MHD_HTTP_HEADER_ACCEPT);
    MHD_Result result = MHD_NO;  // ends the connection
    TryRun([&] {
      result = Send(connection, static_cast<Daemon*>(self)->PageOf(path, accept ? accept : ""));
    });
    return result;
  }

  Page PageOf(std::string_view path, std::string_view accept) const {
    if (path == "/healthz") return ProbePage(pages_.why_not_alive(), "ok");
    if (path == "/readyz") return ProbePage(pages_.why_not_ready(), "ready");
    if (path == "/metrics") {
      MetricsPage page = pages_.metrics(accept);
      return {MHD_HTTP_OK, std::move(page.content_type), std::move(page.body)};
    }
    return {MHD_HTTP_NOT_FOUND, kTextType, "expected /metrics, /healthz or /readyz\n"};
  }

  static void OnConnection(void* self, MHD_Connection* connection, void** entry,
                           MHD_ConnectionNotificationCode code) {
    if (code == MHD_CONNECTION_NOTIFY_STARTED) {
      const auto* info = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);
      *entry = nullptr;
      TryRun([&] { *entry = static_cast<Daemon*>(self)->Add(info->connect_fd); });
    } else {
      static_cast<Daemon*>(self)->Remove(static_cast<int*>(*entry));
    }
  }

  // Ends the oldest of too many; the library then closes it. Returns the connection's entry.
  int* Add(int fd) {
    auto owned = std::make_unique<int>(fd);
    open_.push_back(owned.get());
    int* const entry = owned.release();
    if (open_.size() > kMaxConnections) {
      shutdown(*open_.front(), SHUT_RDWR);
      open_.pop_front();
    }
    return entry;
  }

  void Remove(int* entry) {
    open_.remove(entry);
    delete entry;
  }

  const AdminServer::Pages& pages_;
  std::list<int*> open_;  // descriptors, oldest first
  MHD_Daemon* daemon_ = nullptr;
};

class HttpAdminServer final : public AdminServer {
 public:
  explicit HttpAdminServer(Pages pages) : pages_(std::move(pages)) {}

  absl::Status Listen(const std::string& address) {
    auto sockets = ListenSocket::BindTcp(address);
    if (!sockets.ok()) {
      return {sockets.status().code(), absl::StrCat("admin-listen: ", sockets.status().message())};
    }
    address_ = absl::StrCat(address.substr(0, address.rfind(':')), ":", sockets->front().port());
    for (const ListenSocket& socket : *sockets) {
      if (!daemons_.emplace_back(pages_).Start(socket)) {
        return absl::UnavailableError(absl::StrCat("admin-listen: cannot serve at ", address));
      }
    }
    return absl::OkStatus();
  }

  const std::string& address() const override { return address_; }

 private:
  const Pages pages_;
  std::list<Daemon> daemons_;  // one for each address of the host
  std::string address_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<AdminServer>> AdminServer::Start(const std::string& address,
                                                                Pages pages) {
  auto server = std::make_unique<HttpAdminServer>(std::move(pages));
  if (absl::Status status = server->Listen(address); !status.ok()) return status;
  return server;
}

}  // namespace attention::server
