#include "server/listener/listen_socket.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <thread>

namespace attention::server {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class UnixListenSocketTest : public ::testing::Test {
 protected:
  UnixListenSocketTest() {
    std::string name = ::testing::TempDir() + "listen-XXXXXX";
    directory_ = mkdtemp(name.data());
    path_ = directory_ + "/a.sock";
  }
  ~UnixListenSocketTest() override { std::filesystem::remove_all(directory_); }

  absl::StatusOr<ListenSocket> Bind(int type = SOCK_STREAM) {
    return ListenSocket::BindUnix(path_, type, std::nullopt);
  }

  bool Answers() const {
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, path_.c_str(), sizeof(address.sun_path) - 1);
    const bool answers =
        connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0;
    close(fd);
    return answers;
  }

  // Makes the file that a killed process leaves; RestoreStaleFile puts it in its place.
  void LeaveStaleFile() {
    auto socket = Bind();
    ASSERT_TRUE(socket.ok()) << socket.status();
    std::filesystem::create_hard_link(path_, path_ + ".kept");
    const ListenSocket closed = *std::move(socket);
  }
  void RestoreStaleFile() { std::filesystem::rename(path_ + ".kept", path_); }

  std::string directory_;
  std::string path_;
};

TEST_F(UnixListenSocketTest, TheFileGoesWithTheSocket) {
  {
    const auto socket = Bind();
    ASSERT_TRUE(socket.ok()) << socket.status();
    EXPECT_TRUE(Answers());
  }
  EXPECT_FALSE(std::filesystem::exists(path_));
  EXPECT_TRUE(std::filesystem::is_empty(directory_)) << "nothing else is left either";
}

TEST_F(UnixListenSocketTest, TheFileOfADeadServerIsReplaced) {
  LeaveStaleFile();
  RestoreStaleFile();
  ASSERT_TRUE(std::filesystem::exists(path_));
  const auto socket = Bind();
  ASSERT_TRUE(socket.ok()) << socket.status();
  EXPECT_TRUE(Answers());
}

TEST_F(UnixListenSocketTest, ASocketThatAnswersIsLeftToItsServer) {
  const auto first = Bind();
  ASSERT_TRUE(first.ok()) << first.status();
  for (const int type : {SOCK_STREAM, SOCK_SEQPACKET}) {
    EXPECT_THAT(Bind(type).status().message(),
                AllOf(HasSubstr("unix:" + path_), HasSubstr("in use by a running server")));
  }
  EXPECT_TRUE(Answers());
}

// A server that replaced the file by force keeps it.
TEST_F(UnixListenSocketTest, AnothersFileIsNotRemoved) {
  std::optional<ListenSocket> first;
  {
    auto socket = Bind();
    ASSERT_TRUE(socket.ok()) << socket.status();
    first.emplace(*std::move(socket));
  }
  std::filesystem::remove(path_);
  const auto second = Bind();
  ASSERT_TRUE(second.ok()) << second.status();
  first.reset();
  EXPECT_TRUE(Answers());
}

TEST_F(UnixListenSocketTest, OfManyThatStartAtOnceExactlyOneGetsAStaleSocket) {
  constexpr int kRounds = 20;
  constexpr int kServers = 4;
  for (int round = 0; round < kRounds; ++round) {
    LeaveStaleFile();
    RestoreStaleFile();
    std::atomic<int> num_bound = 0;
    std::atomic<int> num_tried = 0;
    {
      std::vector<std::jthread> servers;
      for (int i = 0; i < kServers; ++i) {
        servers.emplace_back([&] {
          const auto socket = Bind();
          if (socket.ok()) ++num_bound;
          ++num_tried;
          while (num_tried < kServers) std::this_thread::yield();
        });
      }
    }
    EXPECT_EQ(num_bound, 1);
  }
}

TEST_F(UnixListenSocketTest, TheModeIsSetBeforeAnybodyCanConnect) {
  const auto socket = ListenSocket::BindUnix(path_, SOCK_STREAM, 0600);
  ASSERT_TRUE(socket.ok()) << socket.status();
  struct stat file {};
  ASSERT_EQ(stat(path_.c_str(), &file), 0);
  EXPECT_EQ(file.st_mode & 0777, 0600u);
}

TEST_F(UnixListenSocketTest, WhyItCannotBeBoundIsSaid) {
  std::ofstream(path_) << "precious";
  EXPECT_THAT(Bind().status().message(), HasSubstr("a file that is no socket is in the way"));
  EXPECT_EQ(std::filesystem::file_size(path_), 8u);

  path_ = directory_ + "/missing/a.sock";
  EXPECT_THAT(Bind().status().message(),
              HasSubstr("the directory " + directory_ + "/missing does not exist"));

  path_ = directory_ + "/a.sock/b.sock";
  EXPECT_THAT(Bind().status().message(), HasSubstr(directory_ + "/a.sock is no directory"));

  path_ = directory_ + "/" + std::string(120, 'x');
  EXPECT_THAT(Bind().status().message(), HasSubstr("bytes, expected at most 107"));
}

TEST(TcpListenSocketTest, PortZeroPicksOneForEveryAddressOfAName) {
  const auto sockets = ListenSocket::BindTcp("localhost:0");
  ASSERT_TRUE(sockets.ok()) << sockets.status();
  for (const ListenSocket& socket : *sockets) {
    EXPECT_GT(socket.port(), 0);
    EXPECT_EQ(socket.port(), sockets->front().port());
  }
}

TEST(TcpListenSocketTest, WhyItCannotBeBoundIsSaid) {
  const auto first = ListenSocket::BindTcp("127.0.0.1:0");
  ASSERT_TRUE(first.ok()) << first.status();
  const std::string port = std::to_string(first->front().port());
  EXPECT_THAT(ListenSocket::BindTcp("127.0.0.1:" + port).status().message(),
              AllOf(HasSubstr("127.0.0.1:" + port), HasSubstr("port " + port + " is in use")));
  EXPECT_THAT(ListenSocket::BindTcp("192.0.2.1:0").status().message(),
              HasSubstr("no network interface of this machine has that address"));
  EXPECT_THAT(ListenSocket::BindTcp("no.such.host.invalid:0").status().message(),
              HasSubstr("the host no.such.host.invalid cannot be resolved"));
  EXPECT_THAT(ListenSocket::BindTcp("[::1:0").status().message(), HasSubstr("in brackets"));
}

}  // namespace
}  // namespace attention::server
