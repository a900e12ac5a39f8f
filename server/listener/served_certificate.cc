#include "server/listener/served_certificate.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "absl/strings/str_cat.h"
#include "kernels/base/check.h"
#include "server/base/status_macros.h"

namespace attention::server {
namespace {

int MemoryFile() {
  const int fd = memfd_create("certificate", MFD_CLOEXEC);
  ATTENTION_CHECK(fd >= 0);
  return fd;
}

}  // namespace

ServedCertificate::ServedCertificate(const Listener& listener)
    : listener_(listener),
      certificate_(MemoryFile()),
      key_(MemoryFile()),
      client_ca_(MemoryFile()) {
  for (const std::string& path : {listener.tls_cert, listener.tls_key, listener.tls_client_ca}) {
    if (!path.empty()) watched_.emplace_back(path);
  }
}

ServedCertificate::~ServedCertificate() {
  for (const int fd : {certificate_, key_, client_ca_}) close(fd);
}

absl::StatusOr<std::unique_ptr<ServedCertificate>> ServedCertificate::Load(const Listener& listener,
                                                                           absl::Time now) {
  std::unique_ptr<ServedCertificate> served(new ServedCertificate(listener));
  for (WatchedFile& file : served->watched_) file.MarkRead();
  ATTENTION_ASSIGN_OR_RETURN(const TlsFiles files, ReadTlsFiles(listener, now));
  served->Serve(files);
  return served;
}

std::optional<absl::Status> ServedCertificate::ReloadChanged(absl::Time now) {
  bool has_changed = false, is_still = true;
  for (WatchedFile& file : watched_) {
    const WatchedFile::Change change = file.Look();
    has_changed |= change != WatchedFile::Change::kNone;
    is_still &= change != WatchedFile::Change::kMoving;
  }
  if (!has_changed || !is_still) return std::nullopt;
  for (WatchedFile& file : watched_) file.MarkRead();
  const absl::StatusOr<TlsFiles> files = ReadTlsFiles(listener_, now);
  if (files.ok()) Serve(*files);
  return files.status();
}

std::string ServedCertificate::PathOf(int fd) { return absl::StrCat("/proc/self/fd/", fd); }

void ServedCertificate::Serve(const TlsFiles& files) {
  ++generation_;
  Replace(key_, files.key);
  Replace(certificate_, files.certificate);
  Replace(client_ca_, files.client_ca);
}

void ServedCertificate::Replace(int fd, const std::string& text) const {
  const int made = MemoryFile();
  ATTENTION_CHECK(write(made, text.data(), text.size()) == static_cast<ssize_t>(text.size()));
  const timespec time = {generation_, 0};
  const timespec times[] = {time, time};
  ATTENTION_CHECK(futimens(made, times) == 0);
  ATTENTION_CHECK(dup3(made, fd, O_CLOEXEC) == fd);
  close(made);
}

}  // namespace attention::server
