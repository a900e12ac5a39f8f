// spdlog, set up once: text for people or JSON lines for machines, to standard error. Nobody waits
// for a reader of the log (log_output.h).
#pragma once

#include <string>

#include "server/base/call_log.h"

namespace attention::server {

// `level`: trace, debug, info, warn or error; `format`: text or json. Replaces spdlog's default
// logger. Messages are written as Printable makes them: none forges a line.
void SetUpLogging(const std::string& level, const std::string& format);

// Calls that succeed are logged at debug level, those the client got wrong at info, those that are
// the server's fault at warn. Of those that fail, a few of each kind (RPC, code and reason) are
// logged in a period, so that a client's errors neither fill the disk nor hide what matters.
class SpdlogCallLog final : public CallLog {
 public:
  void Record(const CallRecord& record) override;
};

// A message of a library's, which may come at any rate: sampled in the same way. Not a warning: at
// debug level.
void LogSampled(const std::string& kind, bool is_warning, const std::string& message);

// To be called once a second: logs how many lines of each kind were left out since, and how many
// were lost.
void EndLogPeriod();

}  // namespace attention::server
