// gRPC's own messages, which it would write to standard error in a format of its own.
#pragma once

namespace attention::server {

enum class GrpcLogSeverity { kDebug, kInfo, kError };

// From now on `sink` gets them, from any thread. For the whole process.
void RouteGrpcLog(void (*sink)(GrpcLogSeverity severity, const char* message));

}  // namespace attention::server
