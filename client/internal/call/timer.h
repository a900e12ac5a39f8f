// Time, as the retry loop sees it; tests give it a fake.
#pragma once

#include <functional>

#include "absl/time/time.h"

namespace attention::client::internal {

class Timer {
 public:
  virtual ~Timer() = default;
  virtual absl::Time Now() = 0;
  // Calls `action` once, at `when` or soon after, never from within RunAt. Thread-safe.
  virtual void RunAt(absl::Time when, std::function<void()> action) = 0;
};

}  // namespace attention::client::internal
