#include "tests/support/raw_connection.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>

#include "absl/strings/numbers.h"
#include "absl/time/clock.h"

namespace attention::testing {
namespace {

std::string Literal(const std::string& name, const std::string& value) {
  return name + static_cast<char>(value.size()) + value;
}

std::string Frame(char type, char flags, std::uint32_t stream, const std::string& payload) {
  const std::size_t size = payload.size();
  const char header[] = {static_cast<char>(size >> 16),
                         static_cast<char>(size >> 8),
                         static_cast<char>(size),
                         type,
                         flags,
                         static_cast<char>(stream >> 24),
                         static_cast<char>(stream >> 16),
                         static_cast<char>(stream >> 8),
                         static_cast<char>(stream)};
  return std::string(header, sizeof(header)) + payload;
}

}  // namespace

RawConnection::RawConnection(const std::string& address) {
  int port = 0;
  EXPECT_TRUE(absl::SimpleAtoi(address.substr(address.rfind(':') + 1), &port));
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(static_cast<std::uint16_t>(port));
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  fd_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  EXPECT_EQ(connect(fd_, reinterpret_cast<const sockaddr*>(&to), sizeof(to)), 0);
}

RawConnection::~RawConnection() { close(fd_); }

void RawConnection::Send(const std::string& bytes) const {
  (void)send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
}

bool RawConnection::SendAll(const std::string& bytes) const {
  for (std::size_t sent = 0; sent < bytes.size();) {
    const ssize_t size = send(fd_, bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL);
    if (size <= 0) return false;
    sent += static_cast<std::size_t>(size);
  }
  return true;
}

bool RawConnection::IsClosedWithin(absl::Duration timeout) const {
  const absl::Time deadline = absl::Now() + timeout;
  char bytes[4096];
  for (;;) {
    const auto left_ms = absl::ToInt64Milliseconds(deadline - absl::Now());
    pollfd polled = {fd_, POLLIN, 0};
    if (poll(&polled, 1, static_cast<int>(std::max<std::int64_t>(0, left_ms))) <= 0) return false;
    if (recv(fd_, bytes, sizeof(bytes), 0) <= 0) return true;
  }
}

void RawConnection::DropInput() const {
  char bytes[4096];
  while (recv(fd_, bytes, sizeof(bytes), MSG_DONTWAIT) > 0) continue;
}

std::string RawConnection::Preface() {
  return "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + Frame(4, 0, 0, "");
}

std::string RawConnection::Headers(const std::string& path, std::uint32_t stream) {
  const std::string block = "\x83\x86" + Literal("\x04", path) + Literal("\x01", "localhost") +
                            Literal("\x0f\x10", "application/grpc") +
                            Literal(std::string("\x00\x02te", 4), "trailers");
  return Frame(1, /*END_HEADERS*/ 4, stream, block);
}

std::string RawConnection::Data(const std::string& bytes, std::uint32_t stream) {
  return Frame(0, 0, stream, bytes);
}

std::string RawConnection::Reset(std::uint32_t stream) {
  return Frame(3, 0, stream, std::string("\0\0\0\x08", 4));
}

}  // namespace attention::testing
