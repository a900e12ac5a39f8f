// spdlog, set up once: text for people or JSON lines for machines, to standard error.
#pragma once

#include <string>

#include "server/base/call_log.h"

namespace attention::server {

// `level`: trace, debug, info, warn or error; `format`: text or json. Replaces spdlog's default
// logger.
void SetUpLogging(const std::string& level, const std::string& format);

// Calls that succeed are logged at debug level, those the client got wrong at info, those that are
// the server's fault at warn.
class SpdlogCallLog final : public CallLog {
 public:
  void Record(const CallRecord& record) override;
};

}  // namespace attention::server
