// The pages of the admin port: gauges of a server, and why it is not ready or not alive.
#pragma once

#include "server/observe/admin_server.h"
#include "server/server_state.h"

namespace attention::server {

// `state` must outlive the pages.
AdminServer::Pages MakeAdminPages(ServerState& state);

}  // namespace attention::server
