// A client that sends a part of a message and then stops, as HTTP/2 allows it to: it heeds the
// server's windows, answers its pings, and reads how its call ends.
#pragma once

#include <cstdint>
#include <string>

namespace attention::testing {

class StalledUpload {
 public:
  // Connects to "127.0.0.1:7070" and begins a call of the method ("/package.Service/Method") with a
  // message said to have `message_bytes`.
  StalledUpload(const std::string& address, const std::string& method, std::uint32_t message_bytes);
  ~StalledUpload();
  StalledUpload(const StalledUpload&) = delete;
  StalledUpload& operator=(const StalledUpload&) = delete;

  // Reads what has come, and sends what the windows allow of the message's first `bytes`, up to
  // about a MiB. False: nothing could be sent.
  bool SendUpTo(std::uint64_t bytes);

  std::uint64_t sent() const { return sent_; }
  // The call, or the connection, has come to its end.
  bool has_ended() const { return has_ended_; }
  // The block of headers that ended the call: names and values as they are, such as "grpc-status",
  // a length of 1 and "8".
  const std::string& trailers() const { return trailers_; }
  // The call's grpc-status; -1 when it has not ended with one.
  int status() const;

 private:
  void ReadAll();
  void Handle(char type, char flags, std::uint32_t stream, const std::string& payload);
  void Send(const std::string& bytes);

  int fd_ = -1;
  std::string input_;
  std::int64_t connection_window_ = 65535;
  std::int64_t stream_window_ = 65535;
  std::int64_t initial_window_ = 65535;
  std::uint64_t sent_ = 0;
  bool has_ended_ = false;
  std::string trailers_;
};

}  // namespace attention::testing
