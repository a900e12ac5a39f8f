// A request as the attempts of a call send it.
#pragma once

#include <grpcpp/support/byte_buffer.h>

#include <cstddef>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace attention::client::internal {

// Thread-safety: none; attempts follow each other.
class OutgoingRequest {
 public:
  virtual ~OutgoingRequest() = default;

  // The bytes of an attempt at the target.
  virtual absl::StatusOr<grpc::ByteBuffer> BytesFor(std::size_t target) = 0;
  // Called with the outcome of each attempt: before another begins, and before the answer is read.
  virtual void OnOutcome(const absl::Status& outcome) = 0;
};

// The same bytes for every attempt.
class FixedRequest final : public OutgoingRequest {
 public:
  explicit FixedRequest(grpc::ByteBuffer bytes) : bytes_(std::move(bytes)) {}

  absl::StatusOr<grpc::ByteBuffer> BytesFor(std::size_t) override { return bytes_; }
  void OnOutcome(const absl::Status&) override {}

 private:
  const grpc::ByteBuffer bytes_;
};

}  // namespace attention::client::internal
