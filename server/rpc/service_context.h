// The objects that the services share, and the frame around every call: who calls, how it ended.
#pragma once

#include <grpcpp/server_context.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "kernels/api/attention_backend.h"
#include "server/auth/authenticator.h"
#include "server/base/call_log.h"
#include "server/base/clock.h"
#include "server/base/metrics.h"
#include "server/domain/tenant_ledger.h"
#include "server/domain/tenant_limits.h"
#include "server/domain/work_model.h"
#include "server/layer/layer_table.h"
#include "server/listener/connections.h"
#include "server/memory/buffer_pool.h"
#include "server/memory/result_ledger.h"
#include "server/rpc/calls_in_flight.h"
#include "server/rpc/credential_watch.h"
#include "server/rpc/receiving.h"
#include "server/scheduler/scheduler_pool.h"
#include "server/session/session_table.h"
#include "server/shared_memory/region_table.h"

namespace attention::server {

class ListenerHealth;

// Bounds that clients may ask for (GetServerInfo) and the services apply.
struct ServiceLimits {
  std::int64_t max_message_bytes = 0;
  std::int64_t max_response_bytes = 0;
  std::int64_t max_queued_requests = 0;
  std::int64_t max_queued_bytes = 0;
  std::int64_t max_sessions = 0;
  absl::Duration max_session_ttl;
  // Requests of one stream that are read but not yet answered; beyond, the stream is not read and
  // gRPC's flow control holds the client back.
  int max_stream_requests = 0;
  // The same for their bytes, with those of answers that wait to be written.
  std::int64_t max_stream_bytes = 0;
  // Threads that serve the calls that carry tensors.
  int num_completion_threads = 1;
  // Layers that are being uploaded or converted.
  int max_pending_layers = 1;
  int max_pending_layers_per_tenant = 1;
  absl::Duration upload_stall_timeout;
  // Silence of a connection until the server asks whether its client is still there.
  absl::Duration keepalive_interval = absl::Minutes(1);
  std::int64_t max_receiving_bytes = 0;
  std::int64_t max_calls = 0;
};

// A processor as GetServerInfo shows it.
struct DeviceStatus {
  BackendInfo info;
  bool is_used = true;
  std::string unused_reason;
  std::int64_t kv_capacity_bytes = 0;
  std::int64_t kv_free_bytes = 0;
};

// Everything outlives the services.
struct ServiceContext {
  SchedulerPool& scheduler;
  SessionTable& sessions;
  LayerTable& layers;
  std::function<std::vector<DeviceStatus>()> devices;
  const BackendDescription& backend;  // of one of the devices, which are all of one kind
  WorkModel work_model;               // of each of them
  const Clock& clock;
  const Authenticator& authenticator;
  CredentialWatch& credential_watch;
  const Identity* of_connections;  // whose connections these are; null: the calls tell
  ServerMetrics& metrics;
  CallLog& call_log;
  CallsInFlight& calls_in_flight;
  Connections& connections;
  ListenerHealth& listener_health;
  ReceivingLedger& receiving;
  // Asks for what SIGTERM asks for.
  std::function<void()> ask_for_drain;
  // Logs what clients do to the server as a whole; the caller bounds how often.
  std::function<void(const std::string& text)> warn;
  BufferPool& buffers;
  ResultLedger& results;
  TenantLimitsTable& tenant_limits;
  TenantLedger& streams;             // that each tenant has open
  const RegionTable* regions;        // null: shared memory is not offered
  std::string shared_memory_socket;  // its path
  ServiceLimits limits;
};

// Set when a call's client has gone; the call's requests carry it.
using CancelFlag = std::shared_ptr<std::atomic<bool>>;
inline CancelFlag MakeCancelFlag() { return std::make_shared<std::atomic<bool>>(false); }

// One call, from arrival to its end.
class CallFrame {
 public:
  enum class Kind { kUnary, kStream };

  // From status() INVALID_ARGUMENT when the metadata is not usable, UNAUTHENTICATED or
  // PERMISSION_DENIED when its credentials are not, PERMISSION_DENIED when its priority is above
  // the tenant's highest, RESOURCE_EXHAUSTED when too many calls are open, or too many streams of
  // the tenant.
  CallFrame(const ServiceContext& services, const char* rpc, Kind kind,
            const grpc::ServerContextBase& context, CancelFlag is_cancelled);
  ~CallFrame();
  CallFrame(const CallFrame&) = delete;
  CallFrame& operator=(const CallFrame&) = delete;

  const absl::Status& status() const { return status_; }
  // Empty tenant: the call was refused for its credentials.
  const Identity& identity() const { return identity_; }
  const std::string& tenant() const { return identity_.tenant; }
  const std::string& peer() const { return peer_; }
  absl::Time deadline() const { return deadline_; }

  // Checks that the scheduler would take a request of this call with a message of so many bytes: to
  // be asked before a large one is decoded.
  absl::Status CheckRoom(std::size_t bytes) const;

  // The same of a message whose results take so many bytes, before they are allocated. What is
  // returned is to be held as long as any of them is there. Also RESOURCE_EXHAUSTED while clients
  // have not read what was computed for them.
  absl::StatusOr<ResultLedger::Charge> AdmitResults(std::int64_t message_bytes,
                                                    std::int64_t result_bytes) const;

  // A request that belongs to this call, arriving now.
  std::unique_ptr<AttentionRequest> MakeRequest() const;

  // PERMISSION_DENIED ROLE_REQUIRED unless the caller may do what only administrators may.
  absl::Status CheckIsAdmin() const;
  // The tenant that a request's field `tenant` names: the caller's when it is empty, any for an
  // administrator. PERMISSION_DENIED ROLE_REQUIRED, or INVALID_ARGUMENT for what cannot be a name.
  absl::StatusOr<std::string> TenantNamed(const std::string& field) const;

  // Counts and logs the call; once. Without memory the log lacks a line.
  void Finish(const absl::Status& status) const noexcept;

 private:
  absl::Status ReadHeaders(const grpc::ServerContextBase& context);
  absl::Status SetPriority(std::optional<Priority> asked);

  const ServiceContext& services_;
  const char* rpc_;
  const Kind kind_;
  Identity identity_;
  Priority priority_ = Priority::kNormal;
  bool is_counted_stream_ = false;
  std::string request_id_;
  std::string peer_;
  absl::Time arrival_;
  absl::Time deadline_;
  absl::Status status_;
  const CancelFlag is_cancelled_;
};

}  // namespace attention::server
