#include "server/observe/logging.h"

#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/base_sink.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "server/base/client_text.h"
#include "server/base/error_reason.h"
#include "server/observe/log_output.h"
#include "server/observe/log_sampler.h"

namespace attention::server {
namespace {

// A line of the log is at most about so long.
constexpr std::size_t kMaxLineBytes = 4096;

// Prints the message on one line, whatever is in it: in JSON as a string, else as it is.
class MessageFlag final : public spdlog::custom_flag_formatter {
 public:
  explicit MessageFlag(bool is_json) : is_json_(is_json) {}
  void format(const spdlog::details::log_msg& message, const std::tm&,
              spdlog::memory_buf_t& out) override {
    std::string text = Printable({message.payload.data(), message.payload.size()}, kMaxLineBytes);
    if (is_json_) text = nlohmann::json(text).dump();
    out.append(text.data(), text.data() + text.size());
  }
  std::unique_ptr<custom_flag_formatter> clone() const override {
    return std::make_unique<MessageFlag>(is_json_);
  }

 private:
  const bool is_json_;
};

// A call's fields are data, not prose: in JSON they are fields of the line. The message then is an
// object already and is passed through.
bool is_json = false;

std::unique_ptr<spdlog::formatter> MakeFormatter() {
  auto formatter = std::make_unique<spdlog::pattern_formatter>(spdlog::pattern_time_type::utc,
                                                               spdlog::details::os::default_eol);
  formatter->add_flag<MessageFlag>('*', is_json);
  formatter->set_pattern(is_json ? R"({"time":"%Y-%m-%dT%H:%M:%S.%fZ","level":"%l","message":%*})"
                                 : "%Y-%m-%dT%H:%M:%S.%eZ %^%-5l%$ %*");
  return formatter;
}

LogOutput output(STDERR_FILENO);

class OutputSink final : public spdlog::sinks::base_sink<std::mutex> {
 private:
  void sink_it_(const spdlog::details::log_msg& message) override {
    spdlog::memory_buf_t line;
    formatter_->format(message, line);
    output.Write({line.data(), line.size()});
  }
  void flush_() override {}
};

std::shared_ptr<spdlog::logger> MakeLogger(const char* name, const std::string& level) {
  auto logger = std::make_shared<spdlog::logger>(name, std::make_shared<OutputSink>());
  logger->set_level(spdlog::level::from_str(level));
  // spdlog's own handler writes to standard error, whoever reads there or not.
  logger->set_error_handler([](const std::string&) {});
  return logger;
}

// The logger of call records, whose payload is a ready JSON fragment or text.
std::shared_ptr<spdlog::logger> call_logger;

// One for the process, as spdlog's loggers are.
LogSampler sampler(/*max_per_period=*/10);

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

// "AttentionService/Attend RESOURCE_EXHAUSTED QUEUE_FULL".
std::string KindOf(const CallRecord& record) {
  const auto detail = GetErrorDetail(record.status);
  return absl::StrCat(record.rpc, " ", absl::StatusCodeToString(record.status.code()),
                      detail ? " " : "", detail ? detail->reason : "");
}

std::string JsonFields(const CallRecord& record) {
  const nlohmann::json fields = {
      {"rpc", record.rpc},
      {"code", absl::StatusCodeToString(record.status.code())},
      {"error", Printable(record.status.message())},
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
  auto logger = MakeLogger("server", level);
  logger->set_formatter(MakeFormatter());
  spdlog::set_default_logger(logger);

  call_logger = MakeLogger("calls", level);
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
  if (!record.status.ok() && !sampler.Admit(KindOf(record))) return;
  if (is_json) {
    call_logger->log(level, "{}", JsonFields(record));
    return;
  }
  call_logger->log(level, "{} {} {:.3f} ms request_id={} tenant={} peer={} {}", record.rpc,
                   absl::StatusCodeToString(record.status.code()),
                   absl::ToDoubleMilliseconds(record.elapsed),
                   record.request_id.empty() ? "-" : Quoted(record.request_id),
                   Quoted(record.tenant), record.peer, Printable(record.status.message()));
}

void LogSampled(const std::string& kind, bool is_warning, const std::string& message) {
  const auto level = is_warning ? spdlog::level::warn : spdlog::level::debug;
  if (spdlog::should_log(level) && sampler.Admit(kind)) {
    spdlog::log(level, "{}: {}", kind, message);
  }
}

void EndLogPeriod() {
  for (const LogSampler::Suppressed& suppressed : sampler.EndPeriod()) {
    spdlog::info("{} more lines like this were not logged: {}", suppressed.count, suppressed.kind);
  }
  if (const std::int64_t count = output.TakeLost(); count > 0) {
    spdlog::warn("{} lines were lost: the log was not read, or could not be written", count);
  }
}

}  // namespace attention::server
