// Calls whose messages are bytes: what no generated stub would send, and services without one.
#pragma once

#include <grpcpp/grpcpp.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace attention::testing {

// `method` is "/attention.v1.AttentionService/Attend". `answer`, if given, receives the
// answer's bytes.
grpc::Status CallRaw(const std::shared_ptr<grpc::Channel>& channel, const std::string& method,
                     const std::string& message, std::string* answer = nullptr);

// Sends the messages on a stream, half-closes, reads to the end. `on_answer`, if given, receives
// each answer's bytes as it comes.
grpc::Status StreamRaw(const std::shared_ptr<grpc::Channel>& channel, const std::string& method,
                       const std::vector<std::string>& messages,
                       const std::function<void(const std::string&)>& on_answer = nullptr);

}  // namespace attention::testing
