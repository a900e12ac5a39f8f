// The certificate, the key and the client authorities with which a listener serves, kept where gRPC
// looks for changes: in files that exist in this process's memory alone.
//
// gRPC reads PEM files again when they change, but takes whatever it finds there, a certificate
// that does not fit its key included, and then refuses every client. So it is given these files,
// and they change only when all of the operator's are whole, valid and fit each other.
//
// Thread-safety: gRPC may read the files while ReloadChanged runs.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/base/watched_file.h"
#include "server/listener/listener.h"
#include "server/listener/tls_files.h"

namespace attention::server {

class ServedCertificate {
 public:
  // Errors as of ReadTlsFiles.
  static absl::StatusOr<std::unique_ptr<ServedCertificate>> Load(const Listener& listener,
                                                                 absl::Time now);
  ~ServedCertificate();
  ServedCertificate(const ServedCertificate&) = delete;
  ServedCertificate& operator=(const ServedCertificate&) = delete;

  // Paths at which this process finds them.
  std::string certificate_path() const { return PathOf(certificate_); }
  std::string key_path() const { return PathOf(key_); }
  // Empty: clients need no certificate.
  std::string client_ca_path() const { return has_client_ca() ? PathOf(client_ca_) : ""; }
  bool has_client_ca() const { return !listener_.tls_client_ca.empty(); }

  // Takes the operator's files when one of them has changed. Nothing: none has. OK: they serve from
  // now on. An error: they are wrong, and those before them still serve. To be called every second
  // or so.
  std::optional<absl::Status> ReloadChanged(absl::Time now);

 private:
  explicit ServedCertificate(const Listener& listener);

  static std::string PathOf(int fd);
  void Serve(const TlsFiles& files);
  // Gives the descriptor another file, in one step.
  void Replace(int fd, const std::string& text) const;

  const Listener listener_;
  std::vector<WatchedFile> watched_;
  const int certificate_;  // descriptors of the files in memory
  const int key_;
  const int client_ca_;
  // Their time of change, in seconds: gRPC compares times to see that it read files of one kind.
  std::int64_t generation_ = 0;
};

}  // namespace attention::server
