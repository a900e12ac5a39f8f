// One GetKeysValuesRequest, from decoding to its response.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "attention/v1/session_service.pb.h"
#include "proto/codec/outgoing_message.h"
#include "server/rpc/tensor_call.h"

namespace attention::server {

class KeysValuesCall final : public TensorCall {
 public:
  static constexpr bool kReadsReceivedBytes = false;

  using TensorCall::TensorCall;

  // Decodes `wire` into `request`, whose rows land in this. INVALID_ARGUMENT names the field;
  // RESOURCE_EXHAUSTED when memory is out.
  absl::Status Begin(const CallFrame& frame, const v1::GetKeysValuesRequest& wire,
                     AttentionRequest* request);

  // The response, once the rows have been read. Once.
  absl::StatusOr<codec::OutgoingMessage> Complete(const AttentionResult& result);

 private:
  absl::StatusOr<RowsTransfer> DecodeRange(const v1::GetKeysValuesRequest& wire) const;
  absl::Status Declare(ResponseAllocator& allocator);
  // Where the device is to put the rows.
  StoredRows PlaceRows(ResponseAllocator& allocator);
  void Dequantize();

  SessionLease session_;
  KvGeometry geometry_;
  std::int64_t num_tokens_ = 0;
  ResponseTensor k_;
  ResponseTensor v_;
  std::vector<float> stored_;  // rows with scales, to be dequantized
};

}  // namespace attention::server
