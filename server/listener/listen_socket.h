// A listening socket of this process, and why one cannot be had.
//
// Thread-safety: none.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace attention::server {

// Closed with the object. The file of a unix socket goes with it, unless it is another's by then.
class ListenSocket {
 public:
  // At a path, for streams (SOCK_STREAM) or packets (SOCK_SEQPACKET). Replaces the file that a dead
  // process left; refuses a socket at which somebody answers, and any file that is no socket.
  // UNAVAILABLE says why it cannot be had. `mode`: permission bits of the file.
  static absl::StatusOr<ListenSocket> BindUnix(const std::string& path, int type,
                                               std::optional<int> mode);

  // At each address that the name or address in "host:port" stands for; port 0 picks one for all.
  // "[::]" takes IPv4 as well. UNAVAILABLE says why one cannot be had.
  static absl::StatusOr<std::vector<ListenSocket>> BindTcp(absl::string_view address);

  ListenSocket(ListenSocket&& other) noexcept;
  ListenSocket& operator=(ListenSocket&& other) = delete;
  ~ListenSocket();

  int fd() const { return fd_; }
  int port() const { return port_; }  // 0 of a unix socket

 private:
  ListenSocket(int fd, int port) : fd_(fd), port_(port) {}

  // The identity of the socket's file.
  struct File {
    std::string path;
    dev_t device = 0;
    ino_t inode = 0;
  };

  int fd_;
  int port_;
  std::optional<File> file_;
};

}  // namespace attention::server
