// Messages with everything in them, and bytes as HTTP/2 might deliver them.
#pragma once

#include <google/protobuf/message.h>
#include <grpcpp/support/byte_buffer.h>

#include <memory>
#include <random>
#include <string>
#include <vector>

namespace attention::codec {

using Random = std::mt19937;

// One empty message of every type that carries tensors.
std::vector<std::unique_ptr<google::protobuf::Message>> TensorMessages();

// Sets each field with probability 3/4, tensors and nested messages included; of a oneof, one.
void FillRandomly(google::protobuf::Message* message, Random& random);

// The same bytes for equal messages, whatever is in them.
std::string Canonical(const google::protobuf::Message& message);

// The bytes in slices of at most `max_piece`, at random places; some are empty.
grpc::ByteBuffer Cut(const std::string& bytes, std::size_t max_piece, Random& random);

std::string Joined(const grpc::ByteBuffer& buffer);

}  // namespace attention::codec
