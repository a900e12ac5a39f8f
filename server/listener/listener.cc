#include "server/listener/listener.h"

#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "server/base/client_text.h"
#include "server/base/status_macros.h"

namespace attention::server {
namespace {

constexpr absl::string_view kUnixPrefix = "unix:";

absl::Status Wrong(absl::string_view text, absl::string_view expected) {
  return absl::InvalidArgumentError(absl::StrCat("is ", Quoted(text), ", expected ", expected));
}

// gRPC takes a port modulo 65536, so it is checked here.
bool IsAddress(absl::string_view address) {
  if (absl::StartsWith(address, kUnixPrefix)) return address.size() > kUnixPrefix.size();
  const auto colon = address.rfind(':');
  int port = -1;
  return colon != absl::string_view::npos && colon > 0 &&
         absl::SimpleAtoi(address.substr(colon + 1), &port) && port >= 0 && port <= 65535;
}

// "0660" or "660".
bool ParseMode(absl::string_view text, int* mode) {
  if (text.empty() || text.size() > 4) return false;
  *mode = 0;
  for (const char digit : text) {
    if (digit < '0' || digit > '7') return false;
    *mode = *mode * 8 + (digit - '0');
  }
  return *mode <= 0777;
}

absl::Status SetOption(absl::string_view text, absl::string_view key, absl::string_view value,
                       Listener* listener) {
  const std::pair<absl::string_view, std::string*> files[] = {
      {"tls-cert", &listener->tls_cert},
      {"tls-key", &listener->tls_key},
      {"tls-client-ca", &listener->tls_client_ca}};
  for (const auto& [name, file] : files) {
    if (key != name) continue;
    if (value.empty()) return Wrong(text, absl::StrCat("a file as ", name));
    if (listener->is_unix()) return Wrong(text, absl::StrCat(name, " only with host:port"));
    *file = std::string(value);
    return absl::OkStatus();
  }
  if (key != "mode") return Wrong(text, "the keys mode, tls-cert, tls-key or tls-client-ca");
  int mode = 0;
  if (!listener->is_unix()) return Wrong(text, "mode only with unix:path");
  if (!ParseMode(value, &mode)) return Wrong(text, "a mode such as 0660");
  listener->mode = mode;
  return absl::OkStatus();
}

}  // namespace

bool Listener::is_unix() const { return absl::StartsWith(address, kUnixPrefix); }

bool Listener::is_local() const {
  if (is_unix()) return true;
  const absl::string_view host = absl::string_view(address).substr(0, address.rfind(':'));
  return host == "localhost" || host == "[::1]" || absl::StartsWith(host, "127.");
}

std::string Listener::socket_path() const { return address.substr(kUnixPrefix.size()); }

absl::StatusOr<Listener> ParseListener(absl::string_view text) {
  Listener listener;
  const std::vector<absl::string_view> parts = absl::StrSplit(text, absl::MaxSplits('?', 1));
  listener.address = std::string(parts[0]);
  if (!IsAddress(listener.address)) {
    return Wrong(text, "host:port with a port of 0 to 65535, or unix:path");
  }
  if (parts.size() == 1) return listener;
  for (const absl::string_view option : absl::StrSplit(parts[1], '&')) {
    const std::pair<absl::string_view, absl::string_view> pair =
        absl::StrSplit(option, absl::MaxSplits('=', 1));
    ATTENTION_RETURN_IF_ERROR(SetOption(text, pair.first, pair.second, &listener));
  }
  if (listener.tls_cert.empty() != listener.tls_key.empty()) {
    return Wrong(text, "tls-cert and tls-key, or neither");
  }
  if (!listener.has_tls() && !listener.tls_client_ca.empty()) {
    return Wrong(text, "tls-client-ca only with tls-cert and tls-key");
  }
  return listener;
}

}  // namespace attention::server
