#include "server/observe/logging.h"

#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <memory>
#include <nlohmann/json.hpp>

namespace attention::server {
namespace {

// Prints the message as a JSON string. Text that is not UTF-8 is repaired, not refused.
class JsonMessageFlag final : public spdlog::custom_flag_formatter {
 public:
  void format(const spdlog::details::log_msg& message, const std::tm&,
              spdlog::memory_buf_t& out) override {
    const nlohmann::json text = std::string(message.payload.data(), message.payload.size());
    const std::string quoted = text.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
    out.append(quoted.data(), quoted.data() + quoted.size());
  }
  std::unique_ptr<custom_flag_formatter> clone() const override {
    return std::make_unique<JsonMessageFlag>();
  }
};

// A call's fields are data, not prose: in JSON they are fields of the line. The message then is an
// object already and is passed through.
bool is_json = false;

std::unique_ptr<spdlog::formatter> MakeFormatter() {
  auto formatter = std::make_unique<spdlog::pattern_formatter>(spdlog::pattern_time_type::utc,
                                                               spdlog::details::os::default_eol);
  formatter->add_flag<JsonMessageFlag>('*');
  formatter->set_pattern(is_json ? R"({"time":"%Y-%m-%dT%H:%M:%S.%fZ","level":"%l","message":%*})"
                                 : "%Y-%m-%dT%H:%M:%S.%eZ %^%-5l%$ %v");
  return formatter;
}

// The logger of call records, whose payload is a ready JSON fragment or text.
std::shared_ptr<spdlog::logger> call_logger;

spdlog::level::level_enum LevelOf(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return spdlog::level::debug;
    case absl::StatusCode::kInternal:
    case absl::StatusCode::kUnknown:
    case absl::StatusCode::kDataLoss:
      return spdlog::level::warn;
    default:
      return spdlog::level::info;
  }
}

std::string JsonFields(const CallRecord& record) {
  const nlohmann::json fields = {
      {"rpc", record.rpc},
      {"code", absl::StatusCodeToString(record.status.code())},
      {"error", std::string(record.status.message())},
      {"request_id", record.request_id},
      {"tenant", record.tenant},
      {"peer", record.peer},
      {"elapsed_ms", absl::ToDoubleMilliseconds(record.elapsed)},
  };
  const std::string object = fields.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  return object.substr(1);  // the line's own brace is open
}

}  // namespace

void SetUpLogging(const std::string& level, const std::string& format) {
  is_json = format == "json";
  auto sink = std::make_shared<spdlog::sinks::stderr_sink_mt>();
  auto logger = std::make_shared<spdlog::logger>("server", sink);
  logger->set_formatter(MakeFormatter());
  logger->set_level(spdlog::level::from_str(level));
  logger->flush_on(spdlog::level::info);
  spdlog::set_default_logger(logger);

  call_logger =
      std::make_shared<spdlog::logger>("calls", std::make_shared<spdlog::sinks::stderr_sink_mt>());
  call_logger->set_level(logger->level());
  call_logger->flush_on(spdlog::level::info);
  if (is_json) {
    call_logger->set_pattern(R"({"time":"%Y-%m-%dT%H:%M:%S.%fZ","level":"%l","message":"call",%v)",
                             spdlog::pattern_time_type::utc);
  } else {
    call_logger->set_formatter(MakeFormatter());
  }
}

void SpdlogCallLog::Record(const CallRecord& record) {
  const spdlog::level::level_enum level = LevelOf(record.status);
  if (call_logger == nullptr || !call_logger->should_log(level)) return;
  if (is_json) {
    call_logger->log(level, "{}", JsonFields(record));
    return;
  }
  call_logger->log(level, "{} {} {:.3f} ms request_id={} tenant={} peer={} {}", record.rpc,
                   absl::StatusCodeToString(record.status.code()),
                   absl::ToDoubleMilliseconds(record.elapsed),
                   record.request_id.empty() ? "-" : record.request_id, record.tenant, record.peer,
                   std::string(record.status.message()));
}

}  // namespace attention::server
