// Runs decoded requests as the server would: checked, planned and computed by the CPU backend.
#pragma once

#include <memory>

#include "kernels/api/attention_backend.h"
#include "server/domain/attention_request.h"

namespace attention::fuzz {

// One engine for the life of the process.
AttentionBackend& Backend();

// Computes the request and returns its result.
server::AttentionResult Run(std::unique_ptr<server::AttentionRequest> request);

}  // namespace attention::fuzz
