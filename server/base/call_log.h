// One record for each finished call, whatever its outcome.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace attention::server {

struct CallRecord {
  const char* rpc;  // "AttentionService/Attend"
  std::string request_id;
  std::string tenant;
  std::string peer;
  absl::Status status;
  absl::Duration elapsed;
};

class CallLog {
 public:
  virtual ~CallLog() = default;
  virtual void Record(const CallRecord& record) = 0;  // thread-safe
};

}  // namespace attention::server
