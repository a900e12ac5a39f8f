#include "server/rpc/acceptor.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <gmock/gmock.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

#include "absl/time/clock.h"
#include "server/listener/listen_socket.h"

namespace attention::server {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::HasSubstr;

// A client's socket.
class Client {
 public:
  explicit Client(int port) : fd_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<std::uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(connect(fd_, reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
  }
  ~Client() { close(fd_); }
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  // Waits until the server closes the connection.
  bool IsClosed() const {
    pollfd polled = {fd_, POLLIN, 0};
    char byte = 0;
    return poll(&polled, 1, 20'000) == 1 && recv(fd_, &byte, 1, 0) <= 0;
  }

 private:
  const int fd_;
};

// Takes what the acceptor admits, as gRPC does, and keeps the warnings.
class AcceptorTest : public ::testing::Test {
 protected:
  ~AcceptorTest() override {
    acceptor_.reset();
    for (const int fd : admitted_) close(fd);
  }

  void Start(Connections::Limits limits) {
    auto sockets = ListenSocket::BindTcp("127.0.0.1:0");
    ASSERT_TRUE(sockets.ok()) << sockets.status();
    sockets_ = *std::move(sockets);
    connections_ = std::make_unique<Connections>(limits);
    const auto admit = [this](int fd) {
      const std::lock_guard lock(mutex_);
      if (num_failures_-- > 0) {
        close(fd);
        throw std::bad_alloc();
      }
      admitted_.push_back(fd);
    };
    acceptor_ =
        std::make_unique<Acceptor>(std::vector<Acceptor::Door>{{sockets_[0].fd(), admit}}, own_,
                                   *connections_, metrics_, [this](const std::string& text) {
                                     const std::lock_guard lock(mutex_);
                                     warnings_.push_back(text);
                                   });
  }

  std::unique_ptr<Client> Connect() { return std::make_unique<Client>(sockets_[0].port()); }

  void AwaitAdmitted(std::size_t count) {
    for (int i = 0; i < 2000 && num_admitted() < count; ++i) absl::SleepFor(absl::Milliseconds(10));
    EXPECT_EQ(num_admitted(), count);
  }
  std::size_t num_admitted() {
    const std::lock_guard lock(mutex_);
    return admitted_.size();
  }
  // Once there is one: they are told after the connections were closed.
  std::vector<std::string> warnings() {
    for (int i = 0; i < 2000; ++i) {
      {
        const std::lock_guard lock(mutex_);
        if (!warnings_.empty()) return warnings_;
      }
      absl::SleepFor(absl::Milliseconds(10));
    }
    return {};
  }
  // As gRPC does with a connection that has ended.
  void CloseAdmitted() {
    const std::lock_guard lock(mutex_);
    for (const int fd : admitted_) close(fd);
    admitted_.clear();
  }
  std::int64_t Refused(ConnectionRefusal reason) const {
    return metrics_.connections_refused[static_cast<int>(reason)].value();
  }

  std::vector<ListenSocket> sockets_;
  std::unique_ptr<Connections> connections_;
  ServerMetrics metrics_;
  ProbeAddresses own_;
  std::unique_ptr<Acceptor> acceptor_;
  std::atomic<int> num_failures_ = 0;  // arrivals that memory is out for

 private:
  std::mutex mutex_;
  std::vector<int> admitted_;
  std::vector<std::string> warnings_;
};

TEST_F(AcceptorTest, AnArrivalThatMemoryIsOutForLeavesTheDoorOpen) {
  num_failures_ = 2;
  Start({.all = 10, .per_peer = 10});
  const auto first = Connect();
  EXPECT_TRUE(first->IsClosed());
  const auto second = Connect();
  EXPECT_TRUE(second->IsClosed());
  const auto third = Connect();
  AwaitAdmitted(1);
}

TEST_F(AcceptorTest, ConnectionsOverTheLimitAreClosedAndTheirPlacesGoToTheNext) {
  Start({.all = 2, .per_peer = 10});
  const auto first = Connect();
  const auto second = Connect();
  AwaitAdmitted(2);
  EXPECT_EQ(connections_->count(), 2u);
  EXPECT_TRUE(Connect()->IsClosed());
  EXPECT_EQ(Refused(ConnectionRefusal::kAll), 1);
  EXPECT_THAT(warnings(),
              Contains(AllOf(HasSubstr("refused 1 connection"), HasSubstr("max-connections (2)"))));
  CloseAdmitted();
  const auto third = Connect();
  // At most a sweep's period after its places were given back.
  for (int i = 0; i < 1000 && num_admitted() == 0; ++i) {
    absl::SleepFor(absl::Milliseconds(10));
    if (num_admitted() == 0) Connect()->IsClosed();
  }
  EXPECT_GE(num_admitted(), 1u);
}

TEST_F(AcceptorTest, OnePeerHasABoundOfItsOwn) {
  Start({.all = 10, .per_peer = 1});
  const auto first = Connect();
  AwaitAdmitted(1);
  EXPECT_TRUE(Connect()->IsClosed());
  EXPECT_EQ(Refused(ConnectionRefusal::kPeer), 1);
  EXPECT_THAT(warnings(), Contains(HasSubstr("127.0.0.1 has max-connections-per-peer (1)")));
}

TEST_F(AcceptorTest, TheServersOwnCallsAreNotBounded) {
  Start({.all = 1, .per_peer = 1});
  const auto client = Connect();
  AwaitAdmitted(1);
  const auto own = ProbeSocket::Connect(sockets_[0].fd(), absl::Now() + absl::Seconds(20), own_);
  ASSERT_TRUE(own.ok()) << own.status();
  AwaitAdmitted(2);
  EXPECT_EQ(connections_->count(), 1u);
  EXPECT_TRUE(Connect()->IsClosed());
}

TEST_F(AcceptorTest, RefusalsAreToldOnceAndCounted) {
  Start({.all = 0, .per_peer = 1});
  constexpr int kClients = 50;
  for (int i = 0; i < kClients; ++i) EXPECT_TRUE(Connect()->IsClosed());
  EXPECT_EQ(Refused(ConnectionRefusal::kAll), kClients);
  EXPECT_LT(warnings().size(), 10u);
}

TEST_F(AcceptorTest, ItGoesOnWhenDescriptorsHadRunOut) {
  Start({.all = 10, .per_peer = 10});
  std::vector<std::unique_ptr<Client>> waiting;
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  // The clients' ends exist before the process has no descriptor left: they connect meanwhile
  // through a limit that still holds them, and the server's ends are beyond it.
  const int highest = open("/dev/null", O_RDONLY | O_CLOEXEC);
  const rlimit low = {static_cast<rlim_t>(highest) + 1, before.rlim_max};
  close(highest);
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &low), 0);
  const auto client = Connect();  // takes the last one
  EXPECT_TRUE(client->IsClosed());
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
  EXPECT_EQ(Refused(ConnectionRefusal::kDescriptors), 1);
  EXPECT_THAT(warnings(), Contains(HasSubstr("no file descriptors left")));
  const auto next = Connect();
  AwaitAdmitted(1);
}

TEST_F(AcceptorTest, CloseAllEndsAConnectionWhoseEndsDoNothing) {
  Start({.all = 10, .per_peer = 10});
  const auto client = Connect();
  AwaitAdmitted(1);
  connections_->CloseAll();
  EXPECT_TRUE(client->IsClosed());
}

TEST(ConnectionsTest, ADescriptorThatBelongsToAnotherFileByNowIsLeftAlone) {
  Connections connections({.all = 10, .per_peer = 10});
  int served[2];
  int other[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, served), 0);
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, other), 0);
  ASSERT_EQ(connections.Add(served[0], {"peer", "unix:"}), std::nullopt);
  ASSERT_EQ(dup2(other[0], served[0]), served[0]);  // as when it was closed and the number reused
  connections.CloseAll();
  EXPECT_EQ(send(other[1], "x", 1, MSG_NOSIGNAL), 1) << "the other pair is still connected";
  char byte = 0;
  EXPECT_EQ(recv(other[0], &byte, 1, 0), 1);
  connections.Sweep();
  EXPECT_EQ(connections.count(), 0u);
  for (const int fd : {served[0], served[1], other[0], other[1]}) close(fd);
}

}  // namespace
}  // namespace attention::server
