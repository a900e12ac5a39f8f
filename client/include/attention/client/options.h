// Options of a client and of a single call. What a call sets wins over what its client sets.
#pragma once

#include <cstdint>
#include <optional>
#include <stop_token>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "attention/client/credentials.h"
#include "attention/client/retry_policy.h"

namespace attention::client {

// How a client sends tensors to servers on its own host.
//
// When a server offers it and can be reached (GetServerInfo names a socket that this process can
// connect to), large requests, of 64 KiB and more with their outputs, lie in memory that both have
// mapped, and the messages say only where. By itself the client copies a request's tensors there,
// instead of into the message, and its results are read where the server wrote them; tensors of
// Client::AllocateShared are not copied at all. Nothing else changes: a request that finds no room,
// or whose server does not know the memory (any more), travels as a message.
struct SharedMemoryOptions {
  enum class Use {
    kAutomatic,
    kOff,
  };
  Use use = Use::kAutomatic;
  // A bound on all memory that is shared, results that are still held included. Each server makes
  // it as it is needed, 32 MiB at first, and it stays until the client and the results are gone.
  // The server has limits of its own, for each client and each user of the system. 1 MiB to 2^40.
  std::int64_t max_bytes = std::int64_t{256} << 20;
};

struct ClientOptions {
  // Servers, each "host:port", "dns:///host:port" or "unix:/path/to/socket". At least one.
  // Stateless calls and new sessions go round them in turn (a retry goes to the next); a session's
  // calls go to its owner, who is looked for among the targets once and remembered.
  std::vector<std::string> targets = {};
  // Connections are plain when this is unset. Holds for all targets.
  std::optional<TlsOptions> tls = {};
  TokenOptions token = {};
  // Whose sessions and queue: metadata `attention-tenant`. Printable ASCII. Unset: nothing is sent,
  // and the tenant is who the token or the client's certificate says; without either, "default". A
  // server that knows its callers refuses another tenant than theirs (kTenantMismatch).
  std::optional<std::string> tenant = {};
  // Further metadata of every call, such as a proxy asks for: keys of lower-case letters, digits
  // and
  // `-_.`, values of printable ASCII, or of any bytes where the key ends in "-bin". Not for what
  // other options set, and not for secrets unless `tls` is set.
  std::vector<std::pair<std::string, std::string>> metadata = {};
  // For calls that set neither timeout nor deadline. absl::InfiniteDuration(): none.
  absl::Duration default_timeout = absl::Seconds(60);
  // Largest request and largest response, in bytes; at most 2^31 - 1, which gRPC can carry. The
  // server has a limit of its own.
  std::int64_t max_message_bytes = std::int64_t{1} << 30;
  RetryPolicy retry_policy = {};
  // Connections to each target. One carries some GB/s; more help when many large tensors are in
  // flight at once. 1 to 64.
  int num_channels = 1;
  // Pings a connection that has calls in flight and has been silent for this long, and drops it,
  // which fails the calls with UNAVAILABLE, when no answer comes within keepalive_timeout: so a
  // dead server is noticed before the deadline. Without calls there are no pings. A server ends
  // connections with pings more frequent than it permits; ours permits one in 10 s.
  // absl::InfiniteDuration(): no pings.
  absl::Duration keepalive_interval = absl::Seconds(20);
  absl::Duration keepalive_timeout = absl::Seconds(10);
  SharedMemoryOptions shared_memory = {};
};

struct CallOptions {
  // From the call's start, all attempts together. Ignored when deadline is set.
  std::optional<absl::Duration> timeout = {};
  std::optional<absl::Time> deadline = {};
  // Metadata `x-request-id`, the same for each attempt; found again in the server's logs. Printable
  // ASCII. Empty: generated.
  std::string request_id = {};
  // Cancels the call when its std::stop_source is asked to stop; the call then fails with
  // CANCELLED.
  std::stop_token cancellation = {};
  std::optional<RetryPolicy> retry_policy = {};
  // The caller does nothing until the outcome is there, so the first attempt may run on its thread
  // before the function returns, which saves the hop to another one. The plain forms set it.
  bool may_block = false;
};

struct StepStreamOptions {
  // Whose sessions the stream serves: SessionHandle::server_name. Empty: `target` decides.
  std::string server_name = {};
  // Without a name: which of ClientOptions::targets the stream goes to.
  int target = 0;
  // The options of the stream as a whole; it has no timeout by default. Streams are not retried.
  CallOptions call = {};
  // Requests accepted and not yet answered; one more fails with RESOURCE_EXHAUSTED.
  int max_outstanding = 1024;
};

}  // namespace attention::client
