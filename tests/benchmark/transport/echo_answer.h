// The answers of an echo server: bytes that it holds anyway, or the request's own.
#pragma once

#include <grpcpp/support/byte_buffer.h>

namespace attention::bench {

// Never copies: the bytes move out of `request` when all of it is asked for.
grpc::ByteBuffer EchoAnswer(grpc::ByteBuffer* request);

// The same answer from memory that is written for it, after the request's bytes were copied to one
// place.
grpc::ByteBuffer CopiedEchoAnswer(grpc::ByteBuffer* request);

}  // namespace attention::bench
