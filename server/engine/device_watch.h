// Notices that a server has lost the last of its devices for good: it would answer errors for as
// long as nobody looks, while another process might well compute.
//
// Thread-safety: one thread at a time.
#pragma once

#include "absl/time/time.h"

namespace attention::server {

class DeviceWatch {
 public:
  // `timeout`: how long no device may be usable.
  explicit DeviceWatch(absl::Duration timeout) : timeout_(timeout) {}

  // Records whether a device is usable now. True when none has been for the timeout.
  bool RecoveryTimedOut(bool is_any_usable, absl::Time now) {
    if (is_any_usable) {
      unusable_since_ = absl::InfiniteFuture();
    } else if (unusable_since_ == absl::InfiniteFuture()) {
      unusable_since_ = now;
    }
    return now - unusable_since_ >= timeout_;
  }

 private:
  const absl::Duration timeout_;
  absl::Time unusable_since_ = absl::InfiniteFuture();
};

}  // namespace attention::server
