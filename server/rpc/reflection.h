// The answers of gRPC's reflection protocol, which tell tools about the server's services.
//
// Thread-safety: all methods.
#pragma once

#include <google/protobuf/descriptor.h>

#include <string>
#include <vector>

#include "grpc/reflection/v1/reflection.pb.h"

namespace attention::server {

class Reflection {
 public:
  // Names beyond this are not looked up.
  static constexpr std::size_t kMaxNameBytes = 1024;

  // Lists these services.
  explicit Reflection(std::vector<std::string> services);
  Reflection(const Reflection&) = delete;
  Reflection& operator=(const Reflection&) = delete;

  void Answer(const grpc::reflection::v1::ServerReflectionRequest& request,
              grpc::reflection::v1::ServerReflectionResponse* response) const;

 private:
  const google::protobuf::FileDescriptor* FileOf(
      const grpc::reflection::v1::ServerReflectionRequest& request) const;

  const std::vector<std::string> services_;
  const google::protobuf::DescriptorPool& pool_ =
      *google::protobuf::DescriptorPool::generated_pool();
};

}  // namespace attention::server
