// An HTTP/2 connection on which a test sends any bytes, at any time.
#pragma once

#include <cstdint>
#include <string>

#include "absl/time/time.h"

namespace attention::testing {

class RawConnection {
 public:
  // "127.0.0.1:7070", of any host: the loopback interface is meant.
  explicit RawConnection(const std::string& address);
  ~RawConnection();
  RawConnection(const RawConnection&) = delete;
  RawConnection& operator=(const RawConnection&) = delete;

  // Bytes that have no room are not sent: nobody waits for a server that has hung up.
  void Send(const std::string& bytes) const;
  // Waits for room. False: the server has hung up.
  bool SendAll(const std::string& bytes) const;
  // Reads and drops what comes until the server hangs up; false when it does not within `timeout`.
  bool IsClosedWithin(absl::Duration timeout) const;
  // Drops what has come.
  void DropInput() const;

  static std::string Preface();
  // A call of the method begins. HPACK without a dynamic table or Huffman codes.
  static std::string Headers(const std::string& path, std::uint32_t stream = 1);
  static std::string Data(const std::string& bytes, std::uint32_t stream = 1);
  // The call is cancelled.
  static std::string Reset(std::uint32_t stream);

 private:
  int fd_ = -1;
};

}  // namespace attention::testing
