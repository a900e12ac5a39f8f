// How a client knows its servers, and how they know it: TLS, certificates, tokens. Connect checks
// all of it, and no certificate's key and no token is ever part of a status or a log line.
#pragma once

#include <functional>
#include <string>

#include "absl/status/statusor.h"

namespace attention::client {

// Connections by TLS. Each part is given as a file of PEM or as its text, not both.
//
// Where all parts that are given are files, they are read again every five seconds: connections
// that are made then use what the files hold by then, those that exist go on as they are. While a
// file cannot be read, what it held before counts; while it holds no PEM, or the key fits the
// certificate no longer, no new connection can be made. So replace files by renaming new ones. With
// text among the parts, all is read once, by Connect.
struct TlsOptions {
  // Certificates of the authorities that vouch for servers. Neither: the system's.
  std::string ca_file = {};
  std::string ca_pem = {};
  // The client's own certificate, with its chain, for servers that ask for one (mutual TLS).
  std::string certificate_file = {};
  std::string certificate_pem = {};
  // Its private key, without a passphrase.
  std::string key_file = {};
  std::string key_pem = {};
  // The name that a server's certificate must hold where that is not the host of its target, as
  // behind a tunnel; "localhost" is expected of a unix socket. Holds for all targets.
  std::string server_name = {};
};

// A bearer token, which every call carries: each attempt, stream and upload asks for it anew. At
// most one of `value`, `file` and `callback` is set; none: no token.
struct TokenOptions {
  std::string value = {};
  // A file that holds the token and nothing else; white space around it does not count. It is read
  // again when it changes. While it cannot be read or holds no token, as while it is being
  // replaced, the token of before is kept; nor does a file count that changed in the last tenth of
  // a second, as it may be half written.
  std::string file = {};
  // Gives the token, or why there is none: the call then ends with that status, or is tried again
  // if it is UNAVAILABLE. Called on any thread, several at a time, before each attempt: it must be
  // quick, as one that keeps the token until it is about to expire, and must not throw.
  std::function<absl::StatusOr<std::string>()> callback = {};
  // Without TLS a token is only sent to targets on this host: unix sockets, loopback addresses,
  // "localhost". True: it is sent to all targets, and whoever sees the packets can use it.
  bool allow_unencrypted = false;

  bool is_set() const { return !value.empty() || !file.empty() || callback != nullptr; }
};

}  // namespace attention::client
