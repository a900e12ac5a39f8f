// grpc.reflection.v1.ServerReflection, on the completion queue of all other calls. gRPC 1.51 brings
// grpc.reflection.v1alpha alone, which tools are giving up.
#pragma once

#include "grpc/reflection/v1/reflection.grpc.pb.h"
#include "server/rpc/calls_in_flight.h"
#include "server/rpc/reflection.h"

namespace attention::server {

class ReflectionServiceImpl final : public grpc::reflection::v1::ServerReflection::AsyncService {
 public:
  // Both must outlive the service.
  ReflectionServiceImpl(const Reflection& reflection, CallsInFlight& calls)
      : reflection_(reflection), calls_(calls) {}

  const Reflection& reflection() const { return reflection_; }
  CallsInFlight& calls() { return calls_; }

  // Takes calls from now on; the server must have started.
  void Listen(grpc::ServerCompletionQueue& queue);

 private:
  const Reflection& reflection_;
  CallsInFlight& calls_;
};

}  // namespace attention::server
