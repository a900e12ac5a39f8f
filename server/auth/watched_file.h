// A file that is read again once it has changed and then been still from one look to the next, so
// that one that is being written is not read by halves.
//
// Thread-safety: none.
#pragma once

#include <sys/stat.h>

#include <cstdint>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/statusor.h"

namespace attention::server {

// INVALID_ARGUMENT when the file cannot be read, is empty or has more than a megabyte.
absl::StatusOr<std::string> ReadSmallFile(const std::string& path);

class WatchedFile {
 public:
  explicit WatchedFile(std::string path) : path_(std::move(path)) {}

  const std::string& path() const { return path_; }

  // The text as it is now, which counts as seen.
  absl::StatusOr<std::string> Read();
  // True if the file differs from the one that was read last, and has not changed since the look
  // before this one. A file that is gone differs, too. Once it is read, or found to be unreadable,
  // it is not told of again until it changes.
  bool HasSettledChange();

 private:
  // Differs between any two contents that the file has had.
  struct Stamp {
    std::uint64_t device = 0, inode = 0;
    std::int64_t size = -1;  // of a file that is not there
    std::int64_t modified_ns = 0, changed_ns = 0;

    bool operator==(const Stamp&) const = default;
  };

  Stamp Look() const;

  const std::string path_;
  Stamp read_;       // when it was read
  Stamp last_seen_;  // at the last look
};

}  // namespace attention::server
