#include "server/rpc/keys_values_call.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kernels/api/quantized_row.h"
#include "kernels/base/divide.h"
#include "proto/codec/dtypes.h"
#include "server/base/status_macros.h"
#include "server/rpc/begin_change.h"
#include "server/rpc/session_messages.h"

namespace attention::server {
namespace {

void DequantizeRows(DType dtype, const std::byte* rows, const float* scales, std::int64_t num_rows,
                    int dim, float* out) {
  for (std::int64_t row = 0; row < num_rows; ++row) {
    for (int i = 0; i < dim; ++i, ++rows) {
      *out++ = DequantizedElement(dtype, static_cast<std::uint8_t>(*rows), scales[row]);
    }
  }
}

}  // namespace

absl::StatusOr<RowsTransfer> KeysValuesCall::DecodeRange(
    const v1::GetKeysValuesRequest& wire) const {
  const KvCache& cache = *session_->cache;
  if (wire.layer() < 0 || wire.layer() >= cache.num_layers()) {
    return absl::InvalidArgumentError(
        absl::StrCat("layer is ", wire.layer(), ", expected 0 to ", cache.num_layers() - 1));
  }
  const std::int64_t end = wire.has_end() ? wire.end() : cache.num_held(wire.layer());
  if (end < 0 || end > kMaxPosition) {
    return absl::InvalidArgumentError(
        absl::StrCat("end is ", end, ", expected 0 to ", kMaxPosition));
  }
  if (wire.begin() < 0 || wire.begin() > end) {
    return absl::InvalidArgumentError(absl::StrCat("begin is ", wire.begin(), ", expected 0 to ",
                                                   wire.has_end() ? "end, " : "the tokens held, ",
                                                   end));
  }
  return RowsTransfer{wire.layer(), wire.begin(), end - wire.begin(), {}};
}

absl::Status KeysValuesCall::Begin(const CallFrame& frame, const v1::GetKeysValuesRequest& wire,
                                   AttentionRequest* request) {
  ATTENTION_ASSIGN_OR_RETURN(
      session_, services().sessions.Acquire(DecodeHandle(wire.handle()), frame.tenant()));
  ATTENTION_ASSIGN_OR_RETURN(RowsTransfer read, DecodeRange(wire));
  geometry_ = session_->cache->geometry(read.layer);
  num_tokens_ = read.num_tokens;
  return Decode(frame, request, [&](ResponseAllocator& allocator) -> absl::Status {
    ATTENTION_RETURN_IF_ERROR(Declare(allocator));
    ATTENTION_RETURN_IF_ERROR(allocator.Admit());
    read.rows = PlaceRows(allocator);
    BeginChange(CacheChange::Kind::kRead, session_->cache, request).rows = read;
    const auto bytes = static_cast<double>(StoredRowsLayout::Of(geometry_, num_tokens_).bytes);
    services().work_model.Charge({.kv_bytes = bytes, .io_bytes = bytes}, allocator.budget().bytes(),
                                 1, kStepCosts, request);
    return absl::OkStatus();
  });
}

absl::Status KeysValuesCall::Declare(ResponseAllocator& allocator) {
  const v1::DType dtype =
      HasRowScales(geometry_.dtype) ? v1::DTYPE_FLOAT32 : codec::DTypeToWire(geometry_.dtype);
  ATTENTION_RETURN_IF_ERROR(k_.Declare("k", dtype,
                                       {num_tokens_, geometry_.num_kv_heads, geometry_.head_dim_qk},
                                       allocator.budget()));
  if (!geometry_.value_is_key_prefix) {
    ATTENTION_RETURN_IF_ERROR(
        v_.Declare("v", dtype, {num_tokens_, geometry_.num_kv_heads, geometry_.head_dim_v},
                   allocator.budget()));
  }
  if (!HasRowScales(geometry_.dtype)) return absl::OkStatus();
  const std::int64_t heads = geometry_.num_kv_heads;
  return allocator.budget().CountRows(
      "the rows with their scales would be", num_tokens_,
      heads * (geometry_.elements_per_head() +
               geometry_.rows_per_head() * static_cast<std::int64_t>(sizeof(float))));
}

StoredRows KeysValuesCall::PlaceRows(ResponseAllocator& allocator) {
  k_.Allocate(allocator);
  v_.Allocate(allocator);
  if (!HasRowScales(geometry_.dtype)) {
    return {reinterpret_cast<std::byte*>(k_.data()), reinterpret_cast<std::byte*>(v_.data())};
  }
  const std::size_t bytes = StoredRowsLayout::Of(geometry_, num_tokens_).bytes;
  stored_.resize(CeilDiv(bytes, sizeof(float)));
  return StoredRowsIn(geometry_, num_tokens_, reinterpret_cast<std::byte*>(stored_.data()));
}

void KeysValuesCall::Dequantize() {
  if (!HasRowScales(geometry_.dtype)) return;
  const StoredRows rows =
      StoredRowsIn(geometry_, num_tokens_, reinterpret_cast<std::byte*>(stored_.data()));
  const std::int64_t num_rows = num_tokens_ * geometry_.num_kv_heads;
  DequantizeRows(geometry_.dtype, rows.k, rows.k_scales, num_rows, geometry_.head_dim_qk,
                 k_.floats());
  if (rows.v == nullptr) return;
  DequantizeRows(geometry_.dtype, rows.v, rows.v_scales, num_rows, geometry_.head_dim_v,
                 v_.floats());
}

absl::StatusOr<codec::OutgoingMessage> KeysValuesCall::Complete(const AttentionResult&) {
  Dequantize();
  services().metrics.output_bytes.Add(static_cast<std::int64_t>(k_.size() + v_.size()));
  codec::OutgoingMessage response{v1::GetKeysValuesResponse()};
  k_.MoveTo(v1::GetKeysValuesResponse::kKFieldNumber, response);
  v_.MoveTo(v1::GetKeysValuesResponse::kVFieldNumber, response);
  return response;
}

}  // namespace attention::server
