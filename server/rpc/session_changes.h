// The calls that change whole caches: ForkSession, TruncateSession, KeepTokens and ReorderSessions;
// and AttachSession, which comes between steps as they do.
#pragma once

#include "server/rpc/service_context.h"
#include "server/rpc/unary_call.h"

namespace attention::server {

// Each leads to one Finish of the call. The services must outlive it.
void ServeFork(UnaryCall& call, const ServiceContext& services);
void ServeTruncate(UnaryCall& call, const ServiceContext& services);
void ServeKeep(UnaryCall& call, const ServiceContext& services);
void ServeAttach(UnaryCall& call, const ServiceContext& services);
void ServeReorder(UnaryCall& call, const ServiceContext& services);

}  // namespace attention::server
