// The bytes of results that are large, from before they are made until gRPC has let the last of
// them go: the queue counts a request only until it runs, and its client may be slow to read, or
// never read.
//
// Thread-safety: all methods. Charges may be let go on any thread.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace attention::server {

class ResultLedger {
 public:
  explicit ResultLedger(std::int64_t max_bytes);

  // Counts until the last copy is gone, which may be after the ledger. Null: nothing is counted.
  using Charge = std::shared_ptr<const void>;

  // RESOURCE_EXHAUSTED QUEUE_FULL with a retry delay. A tenant may hold at most four times of what
  // it leaves free, as in the queue (HasRoom).
  absl::StatusOr<Charge> Take(const std::string& tenant, std::int64_t bytes);

  std::int64_t bytes() const;

 private:
  struct Held;
  class Holding;

  const std::int64_t max_bytes_;
  const std::shared_ptr<Held> held_;
};

}  // namespace attention::server
