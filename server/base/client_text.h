// Words of a client, made fit to stand in a status or in a line of a log.
//
// A client chooses ids, names and metadata: they may be megabytes long, hold line ends that would
// forge a line of the log, or bytes that are no UTF-8, which a protobuf string may not hold.
#pragma once

#include <cstddef>
#include <string>

#include "absl/strings/string_view.h"

namespace attention::server {

// At most so much of a client's text is repeated.
inline constexpr std::size_t kMaxQuotedBytes = 128;

// At most so much of a status' message travels, or is logged.
inline constexpr std::size_t kMaxMessageBytes = 1024;

// 'text', quotes included. Bytes that are not printable ASCII are escaped as in C, and of a longer
// text than kMaxQuotedBytes the beginning is followed by its length. Every text of a client goes
// through here on its way into a message (tests/lint/check_quotes.py).
std::string Quoted(absl::string_view text);

bool IsPrintable(char c);  // in ASCII

// A whole message, its own quotes as they are; the beginning of one that takes more than
// `max_bytes`.
std::string Printable(absl::string_view message, std::size_t max_bytes = kMaxMessageBytes);

}  // namespace attention::server
