// Runs decoded requests as the server would: checked, planned and computed by the CPU backend.
#pragma once

#include <grpcpp/support/byte_buffer.h>

#include <cstddef>
#include <cstdint>
#include <memory>

#include "kernels/api/attention_backend.h"
#include "server/domain/attention_request.h"
#include "server/memory/buffer_pool.h"

namespace attention::fuzz {

// One engine for the life of the process.
AttentionBackend& Backend();

// One pool for the life of the process.
server::BufferPool& Buffers();

// The input as it might be received: cut into slices at places that follow from its bytes.
grpc::ByteBuffer Receive(const std::uint8_t* data, std::size_t size);

// Computes the request and returns its result.
server::AttentionResult Run(std::unique_ptr<server::AttentionRequest> request);

}  // namespace attention::fuzz
