// A connection that is made to see what is at its other end.
#pragma once

#include <sys/socket.h>

#include <cstddef>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace attention::client::internal {

class ProbeSocket {
 public:
  ProbeSocket(int family, int type);
  ~ProbeSocket();
  ProbeSocket(const ProbeSocket&) = delete;
  ProbeSocket& operator=(const ProbeSocket&) = delete;

  // 0, or why not as an errno.
  int Connect(const sockaddr* to, socklen_t size, absl::Time deadline) const;

  void Send(absl::string_view bytes) const;
  // Some bytes; empty when the other end has closed, or nothing came in time.
  std::string Receive(absl::Time deadline) const;

 private:
  bool Await(short events, absl::Time deadline) const;

  const int fd_;
};

}  // namespace attention::client::internal
