#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>

#include "tests/benchmark/transport/caller.h"

namespace attention::bench {
namespace {

[[noreturn]] void Fail(const std::string& what) {
  std::fprintf(stderr, "%s: %s\n", what.c_str(), std::strerror(errno));
  std::exit(1);
}

int ConnectUnix(const std::string& path, int buffer_bytes) {
  const int fd = socket(AF_UNIX, SOCK_STREAM, 0);
  if (buffer_bytes > 0) {
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &buffer_bytes, sizeof(buffer_bytes));
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &buffer_bytes, sizeof(buffer_bytes));
  }
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof(address.sun_path) - 1);
  if (connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) Fail(path);
  return fd;
}

int ConnectTcp(const std::string& target) {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  const int on = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  const std::size_t colon = target.rfind(':');
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<std::uint16_t>(std::stoi(target.substr(colon + 1))));
  inet_pton(AF_INET, target.substr(0, colon).c_str(), &address.sin_addr);
  if (connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) Fail(target);
  return fd;
}

// Writes and reads as the socket lets it: with several requests in flight, both ends that only
// wrote would wait for each other.
class SocketCaller final : public Caller {
 public:
  explicit SocketCaller(int fd) : fd_(fd), answer_(kMaxAnswerBytes) {}
  ~SocketCaller() override { close(fd_); }

  Sample Run(const Load& load, Requests& requests) override {
    const std::string message = Message(requests.Next());
    Recorder recorder(load.seconds);
    std::deque<double> unanswered;
    std::size_t written = 0, received = 0;  // of the present request and answer
    bool is_writing = false, is_over = false;
    const auto has_room = [&] {
      return !is_over && static_cast<int>(unanswered.size()) < load.in_flight;
    };
    for (;;) {
      // Asked once a turn: a run that ended in the midst of it would wait for an answer to nothing.
      is_over = is_over || recorder.IsOver();
      if (!is_writing && has_room()) {
        is_writing = true;
        unanswered.push_back(Now());
      }
      if (unanswered.empty()) break;
      if (is_writing) is_writing = !Write(message, &written);
      if (!IsReadable(is_writing, has_room())) continue;
      received += Read(load.min_answer_bytes - received);
      if (received < load.min_answer_bytes) continue;
      received = 0;
      recorder.Add(unanswered.front(), message.size() + load.min_answer_bytes);
      unanswered.pop_front();
    }
    return recorder.Finish();
  }

 private:
  static std::string Message(const grpc::ByteBuffer& request) {
    std::vector<grpc::Slice> slices;
    request.Dump(&slices);
    const std::uint64_t size = request.Length();
    std::string message(reinterpret_cast<const char*>(&size), sizeof(size));
    for (const grpc::Slice& slice : slices) {
      message.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
    }
    return message;
  }

  // Writes as much as the socket takes; true when all of `message` is written.
  bool Write(const std::string& message, std::size_t* written) {
    const ssize_t count =
        send(fd_, message.data() + *written, message.size() - *written, MSG_DONTWAIT);
    if (count < 0 && errno != EAGAIN) Fail("send");
    if (count > 0) *written += static_cast<std::size_t>(count);
    if (*written < message.size()) return false;
    *written = 0;
    return true;
  }

  // Waits until the socket takes or gives bytes, unless there is something else to do.
  bool IsReadable(bool is_writing, bool may_begin) {
    if (!is_writing && !may_begin) return true;  // Read waits
    pollfd events = {fd_, static_cast<short>(is_writing ? POLLIN | POLLOUT : POLLIN), 0};
    if (poll(&events, 1, may_begin && !is_writing ? 0 : -1) < 0) Fail("poll");
    return (events.revents & POLLIN) != 0;
  }

  std::size_t Read(std::size_t size) {
    const ssize_t count = recv(fd_, answer_.data(), size, 0);
    if (count <= 0) Fail("recv");
    return static_cast<std::size_t>(count);
  }

  int fd_;
  std::vector<char> answer_;
};

}  // namespace

std::unique_ptr<Caller> MakeSocketCaller(const std::string& target,
                                         const ChannelSettings& settings) {
  const std::string unix_scheme = "unix:";
  if (target.starts_with(unix_scheme)) {
    return std::make_unique<SocketCaller>(
        ConnectUnix(target.substr(unix_scheme.size()), settings.socket_buffer_bytes));
  }
  return std::make_unique<SocketCaller>(ConnectTcp(target));
}

}  // namespace attention::bench
