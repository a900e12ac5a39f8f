#include "tests/benchmark/cuda/case_tensors.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "kernels/api/quantized_row.h"
#include "tests/benchmark/cuda/normal_values.h"

namespace attention::bench {
namespace {

absl::Status Fill(DType dtype, std::int64_t count, std::uint32_t seed, cuda::GrowingBuffer* out) {
  absl::Status status = out->Reserve(count * DTypeBytes(dtype));
  if (status.ok()) FillNormal(dtype, count, seed, out->data());
  return status;
}

// Rounds a row as a cache of a type with row scales does.
void RoundRow(DType dtype, float* row, int count) {
  float max = 0;
  for (int i = 0; i < count; ++i) max = std::max(max, std::fabs(row[i]));
  const RowScale scale = RowScale::Of(dtype, max);
  for (int i = 0; i < count; ++i) {
    row[i] = DequantizedElement(dtype, QuantizedElement(dtype, row[i], scale), scale.scale);
  }
}

}  // namespace

PartTensors::PartTensors(const Part& part, cuda::Device& device)
    : part_(part),
      device_(device),
      q_(device.host_memory()),
      k_(device.host_memory()),
      v_(device.host_memory()),
      device_q_(device.memory()),
      device_k_(device.memory()),
      device_v_(device.memory()),
      device_o_(device.memory()) {}

absl::Status PartTensors::Fill(std::uint32_t seed) {
  const std::int64_t q_count = part_.batch_size * part_.q_len * part_.num_q_heads * part_.head_dim;
  const std::int64_t kv_count =
      (part_.kv_len + part_.batch_size - 1) * part_.num_kv_heads * part_.head_dim;
  absl::Status status = bench::Fill(part_.dtype, q_count, 3 * seed, &q_);
  if (status.ok()) status = bench::Fill(part_.dtype, kv_count, 3 * seed + 1, &k_);
  if (status.ok()) status = bench::Fill(part_.dtype, kv_count, 3 * seed + 2, &v_);
  return status;
}

std::int64_t PartTensors::query_bytes() const {
  return part_.q_len * part_.num_q_heads * part_.head_dim *
         static_cast<std::int64_t>(DTypeBytes(part_.dtype));
}

std::int64_t PartTensors::kv_row_bytes() const {
  return std::int64_t{part_.num_kv_heads} * part_.head_dim *
         static_cast<std::int64_t>(DTypeBytes(part_.dtype));
}

const char* PartTensors::Query(int sequence, std::int64_t row) const {
  return q_.data() + sequence * query_bytes() + row * (query_bytes() / part_.q_len);
}

RowsView PartTensors::RowsOf(const cuda::GrowingBuffer& rows, int sequence,
                             std::int64_t token) const {
  const std::int64_t row = token + (token >= part_.shared_len ? sequence : 0);
  return DenseRows(static_cast<const void*>(rows.data() + row * kv_row_bytes()), part_.dtype,
                   part_.num_kv_heads, part_.head_dim);
}

RowsView PartTensors::Keys(int sequence, std::int64_t token) const {
  return RowsOf(k_, sequence, token);
}
RowsView PartTensors::Values(int sequence, std::int64_t token) const {
  return RowsOf(v_, sequence, token);
}

std::vector<float> PartTensors::Stored(const cuda::GrowingBuffer& rows, int sequence,
                                       int kv_head) const {
  std::vector<float> stored(part_.kv_len * part_.head_dim);
  for (std::int64_t token = 0; token < part_.kv_len; ++token) {
    const RowsView row = RowsOf(rows, sequence, token);
    float* to = stored.data() + token * part_.head_dim;
    for (int i = 0; i < part_.head_dim; ++i) {
      to[i] = LoadElement(row.data, row.dtype, kv_head * row.head_stride + i);
    }
    if (HasRowScales(part_.kv_dtype)) RoundRow(part_.kv_dtype, to, part_.head_dim);
  }
  return stored;
}

std::vector<float> PartTensors::StoredKeys(int sequence, int kv_head) const {
  return Stored(k_, sequence, kv_head);
}
std::vector<float> PartTensors::StoredValues(int sequence, int kv_head) const {
  return Stored(v_, sequence, kv_head);
}

absl::Status PartTensors::UploadRows(const cuda::GrowingBuffer& rows, char* to) {
  for (int sequence = 0; sequence < part_.batch_size; ++sequence) {
    for (const auto& [begin, end] :
         {std::pair{std::int64_t{0}, part_.shared_len}, {part_.shared_len, part_.kv_len}}) {
      if (begin == end) continue;
      const std::int64_t place = (sequence * part_.kv_len + begin) * kv_row_bytes();
      absl::Status status =
          device_.CopyToDevice(cuda::Stream::kCompute, to + place,
                               RowsOf(rows, sequence, begin).data, (end - begin) * kv_row_bytes());
      if (!status.ok()) return status;
    }
  }
  return absl::OkStatus();
}

absl::Status PartTensors::Upload() {
  const std::size_t q_bytes = part_.batch_size * query_bytes();
  const std::size_t kv_bytes = part_.batch_size * part_.kv_len * kv_row_bytes();
  for (const auto& [buffer, bytes] : {std::pair{&device_q_, q_bytes},
                                      {&device_o_, q_bytes},
                                      {&device_k_, kv_bytes},
                                      {&device_v_, kv_bytes}}) {
    if (absl::Status status = buffer->Reserve(bytes); !status.ok()) return status;
  }
  absl::Status status =
      device_.CopyToDevice(cuda::Stream::kCompute, device_q_.data(), q_.data(), q_bytes);
  if (status.ok()) status = UploadRows(k_, device_k_.data());
  if (status.ok()) status = UploadRows(v_, device_v_.data());
  return status;
}

absl::StatusOr<CaseTensors> MakeCaseTensors(const Case& bench_case, cuda::Device& device) {
  CaseTensors tensors;
  for (const Part& part : bench_case.parts) {
    tensors.push_back(std::make_unique<PartTensors>(part, device));
    const auto seed = static_cast<std::uint32_t>(tensors.size());
    if (absl::Status status = tensors.back()->Fill(seed); !status.ok()) return status;
  }
  return tensors;
}

}  // namespace attention::bench
