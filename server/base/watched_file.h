// A file that is to be read again once it has changed and then been still from one look to the
// next, so that one that is being written is not read by halves.
//
// Thread-safety: none.
#pragma once

#include <cstdint>
#include <string>
#include <utility>

#include "absl/status/statusor.h"

namespace attention::server {

// INVALID_ARGUMENT when the file cannot be read, is empty or has more than a megabyte.
absl::StatusOr<std::string> ReadSmallFile(const std::string& path);

class WatchedFile {
 public:
  enum class Change {
    kNone,    // since MarkRead
    kMoving,  // it differs from then, and from the last look too
    kSettled  // it differs from then, and is as at the last look. A file that is gone is settled,
              // too
  };

  explicit WatchedFile(std::string path) : path_(std::move(path)) {}

  const std::string& path() const { return path_; }

  // The file as it is now counts as read. To be called before it is read.
  void MarkRead() { read_ = last_seen_ = Now(); }
  Change Look();

 private:
  // Differs between any two contents that the file has had.
  struct Stamp {
    std::uint64_t device = 0, inode = 0;
    std::int64_t size = -1;  // of a file that is not there
    std::int64_t modified_ns = 0, changed_ns = 0;

    bool operator==(const Stamp&) const = default;
  };

  Stamp Now() const;

  std::string path_;
  Stamp read_;
  Stamp last_seen_;
};

}  // namespace attention::server
