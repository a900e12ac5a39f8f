#include "server/rpc/grpc_log.h"

#include <grpc/support/log.h>

#include <atomic>

#include "server/base/contain_exceptions.h"

namespace attention::server {
namespace {

std::atomic<void (*)(GrpcLogSeverity, const char*)> log_sink{nullptr};

void Forward(gpr_log_func_args* args) {
  const GrpcLogSeverity severity =
      args->severity == GPR_LOG_SEVERITY_ERROR  ? GrpcLogSeverity::kError
      : args->severity == GPR_LOG_SEVERITY_INFO ? GrpcLogSeverity::kInfo
                                                : GrpcLogSeverity::kDebug;
  // gRPC knows no exceptions.
  TryRun([&] { log_sink.load()(severity, args->message); });
}

}  // namespace

void RouteGrpcLog(void (*sink)(GrpcLogSeverity severity, const char* message)) {
  log_sink.store(sink);
  gpr_set_log_function(Forward);
}

}  // namespace attention::server
