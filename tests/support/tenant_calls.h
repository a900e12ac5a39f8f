// The calls that a caller with credentials makes, and a tenant that has one of everything.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "attention/v1/layer_service.grpc.pb.h"
#include "tests/support/identity_server.h"
#include "tests/support/session_driver.h"
#include "tests/support/shared_memory.h"

namespace attention::testing {

inline constexpr std::size_t kRegionBytes = std::size_t{1} << 20;

// Each makes one call, and expects the right answer when it succeeds. `tenant`: the field of the
// request that names another tenant than the caller's; empty: it names none.
grpc::Status Attend(const Caller& caller, v1::AttendRequest request = MakeAttendRequest({}));
grpc::Status AttendOnAStream(const Caller& caller);
grpc::Status Create(const Caller& caller, v1::SessionHandle* handle);
grpc::Status Get(const Caller& caller, const v1::SessionHandle& handle,
                 const std::string& tenant = "");
grpc::Status Delete(const Caller& caller, const v1::SessionHandle& handle,
                    const std::string& tenant = "");
// A step that appends and attends; the call's status, or the step's.
grpc::Status Step(const Caller& caller, const v1::SessionHandle& handle);
grpc::Status StepOnAStream(const Caller& caller, const v1::SessionHandle& handle);
// The ids of the tenant's sessions.
grpc::Status List(const Caller& caller, std::vector<std::string>* ids,
                  const std::string& tenant = "");
grpc::Status CreateLayer(const Caller& caller, const std::string& layer_id);
// Rows through a layer that CreateLayer made, compared with the reference.
grpc::Status ForwardRows(const Caller& caller, const std::string& layer_id);
grpc::Status GetLayer(const Caller& caller, const std::string& layer_id,
                      const std::string& tenant = "");
grpc::Status ListLayers(const Caller& caller, std::vector<std::string>* ids,
                        const std::string& tenant = "");
grpc::Status DeleteLayer(const Caller& caller, const std::string& layer_id,
                         const std::string& tenant = "");
grpc::Status ConvertLayer(const Caller& caller, const std::string& layer_id);
grpc::Status Info(const Caller& caller, v1::GetServerInfoResponse* response = nullptr,
                  const std::string& tenant = "");
// Asks for the output in somebody's memory.
grpc::Status AttendInto(const Caller& caller, const std::string& region_id);
v1::SharedMemoryResponse CreateRegion(ChannelConnection& connection, const std::string& tenant,
                                      const std::string& token);

// The tenant acme, with one of each thing that a tenant has.
class Acme {
 public:
  explicit Acme(IdentityServer& server);

  void ExpectUntouched() const;

  v1::SessionHandle handle;
  const std::string layer_id = "acme.0";
  std::string region_id;

 private:
  const Caller caller_;
  ChannelConnection connection_;
  std::unique_ptr<SharedMemory> memory_;
};

// Everything that is done to a tenant's things, or that costs the server something, by name.
std::vector<std::pair<const char*, std::function<grpc::Status(const Caller&)>>> Deeds(
    const Acme& acme);

}  // namespace attention::testing
