#include "tests/support/stalled_upload.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>

#include "absl/strings/numbers.h"
#include "tests/support/raw_connection.h"

namespace attention::testing {
namespace {

constexpr char kHeaders = 1;
constexpr char kReset = 3;
constexpr char kSettings = 4;
constexpr char kPing = 6;
constexpr char kGoAway = 7;
constexpr char kWindowUpdate = 8;
constexpr char kAck = 1;        // of settings and pings
constexpr char kEndStream = 1;  // of headers
constexpr int kInitialWindowSize = 4;

std::uint32_t Number(const std::string& bytes, std::size_t begin, std::size_t size) {
  std::uint32_t number = 0;
  for (std::size_t i = begin; i < begin + size; ++i) {
    number = number << 8 | static_cast<std::uint8_t>(bytes[i]);
  }
  return number;
}

std::string Frame(char type, char flags, const std::string& payload) {
  const auto size = static_cast<std::uint32_t>(payload.size());
  std::string frame;
  for (const int shift : {16, 8, 0}) frame.push_back(static_cast<char>(size >> shift));
  frame += {type, flags, 0, 0, 0, 0};
  return frame + payload;
}

}  // namespace

StalledUpload::StalledUpload(const std::string& address, const std::string& method,
                             std::uint32_t message_bytes) {
  int port = 0;
  EXPECT_TRUE(absl::SimpleAtoi(address.substr(address.rfind(':') + 1), &port));
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(static_cast<std::uint16_t>(port));
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  fd_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  EXPECT_EQ(connect(fd_, reinterpret_cast<const sockaddr*>(&to), sizeof(to)), 0);
  std::string prefix(1, '\0');  // not compressed
  for (const int shift : {24, 16, 8, 0})
    prefix.push_back(static_cast<char>(message_bytes >> shift));
  Send(RawConnection::Preface() + RawConnection::Headers(method) + RawConnection::Data(prefix));
  connection_window_ -= 5;
  stream_window_ -= 5;
}

StalledUpload::~StalledUpload() { close(fd_); }

bool StalledUpload::SendUpTo(std::uint64_t bytes) {
  constexpr std::int64_t kFrameBytes = 16384;  // which every server takes
  constexpr int kFrames = 64;
  ReadAll();
  bool has_sent = false;
  for (int i = 0; i < kFrames && !has_ended_ && sent_ < bytes; ++i) {
    const std::int64_t room = std::min({connection_window_, stream_window_, kFrameBytes});
    const auto size = std::min<std::int64_t>(room, static_cast<std::int64_t>(bytes - sent_));
    if (size <= 0) break;
    Send(RawConnection::Data(std::string(static_cast<std::size_t>(size), '\0')));
    connection_window_ -= size;
    stream_window_ -= size;
    sent_ += static_cast<std::uint64_t>(size);
    has_sent = true;
  }
  return has_sent;
}

int StalledUpload::status() const {
  const std::string name = "grpc-status";
  const auto found = trailers_.find(name);
  if (found == std::string::npos) return -1;
  const std::size_t value = found + name.size();  // its length, then its digits
  int status = -1;
  return absl::SimpleAtoi(trailers_.substr(value + 1, static_cast<std::uint8_t>(trailers_[value])),
                          &status)
             ? status
             : -1;
}

void StalledUpload::ReadAll() {
  char bytes[65536];
  for (;;) {
    const ssize_t size = recv(fd_, bytes, sizeof(bytes), MSG_DONTWAIT);
    if (size == 0) has_ended_ = true;
    if (size <= 0) break;
    input_.append(bytes, static_cast<std::size_t>(size));
  }
  constexpr std::size_t kHeaderBytes = 9;
  while (input_.size() >= kHeaderBytes) {
    const std::size_t size = Number(input_, 0, 3);
    if (input_.size() < kHeaderBytes + size) break;
    Handle(input_[3], input_[4], Number(input_, 5, 4), input_.substr(kHeaderBytes, size));
    input_.erase(0, kHeaderBytes + size);
  }
}

void StalledUpload::Handle(char type, char flags, std::uint32_t stream,
                           const std::string& payload) {
  switch (type) {
    case kSettings:
      if (flags & kAck) return;
      for (std::size_t i = 0; i + 6 <= payload.size(); i += 6) {
        if (Number(payload, i, 2) != kInitialWindowSize) continue;
        const std::int64_t window = Number(payload, i + 2, 4);
        stream_window_ += window - initial_window_;
        initial_window_ = window;
      }
      return Send(Frame(kSettings, kAck, ""));
    case kPing:
      if ((flags & kAck) == 0) Send(Frame(kPing, kAck, payload));
      return;
    case kWindowUpdate:
      (stream == 0 ? connection_window_ : stream_window_) += Number(payload, 0, 4);
      return;
    case kHeaders:
      if (flags & kEndStream) {
        trailers_ = payload;
        has_ended_ = true;
      }
      return;
    case kReset:
    case kGoAway:
      has_ended_ = true;
      return;
    default:  // what the server says is of no interest
      return;
  }
}

void StalledUpload::Send(const std::string& bytes) {
  for (std::size_t sent = 0; sent < bytes.size();) {
    const ssize_t size = send(fd_, bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL);
    if (size <= 0) {
      has_ended_ = true;
      return;
    }
    sent += static_cast<std::size_t>(size);
  }
}

}  // namespace attention::testing
