// The tensors of a case, in the host's memory and, for peers, dense in the device's.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/api/tensor_view.h"
#include "kernels/cuda/device/device.h"
#include "kernels/cuda/plan/run_memory.h"
#include "tests/benchmark/cuda/cases.h"

namespace attention::bench {

// Normal values, none of them twice in the same place of a row.
//
// Sequence i has the same rows of keys and values as its neighbour, one row further on, so a cache
// of any size needs the host's memory of one sequence, and yet each sequence has its own result.
class PartTensors {
 public:
  PartTensors(const Part& part, cuda::Device& device);

  // RESOURCE_EXHAUSTED when memory is out.
  absl::Status Fill(std::uint32_t seed);

  const Part& part() const { return part_; }
  const char* Query(int sequence, std::int64_t row = 0) const;
  // Rows of a sequence from `token` on, up to shared_len or to the end.
  RowsView Keys(int sequence, std::int64_t token) const;
  RowsView Values(int sequence, std::int64_t token) const;
  // [kv_len, head_dim] of one head, as a cache of kv_dtype gives them back.
  std::vector<float> StoredKeys(int sequence, int kv_head) const;
  std::vector<float> StoredValues(int sequence, int kv_head) const;

  std::int64_t query_bytes() const;  // of q or o of a sequence

  // Dense in the device's memory: q and o [batch_size, q_len, num_q_heads, head_dim], k and v
  // [batch_size, kv_len, num_kv_heads, head_dim], all of `dtype`; o is not filled. In order with
  // launches.
  absl::Status Upload();
  char* device_q() const { return device_q_.data(); }
  char* device_k() const { return device_k_.data(); }
  char* device_v() const { return device_v_.data(); }
  char* device_o() const { return device_o_.data(); }

 private:
  std::int64_t kv_row_bytes() const;
  RowsView RowsOf(const cuda::GrowingBuffer& rows, int sequence, std::int64_t token) const;
  std::vector<float> Stored(const cuda::GrowingBuffer& rows, int sequence, int kv_head) const;
  absl::Status UploadRows(const cuda::GrowingBuffer& rows, char* to);

  Part part_;
  cuda::Device& device_;
  cuda::GrowingBuffer q_, k_, v_;  // the host's; k and v [kv_len + batch_size - 1] rows
  cuda::GrowingBuffer device_q_, device_k_, device_v_, device_o_;
};

using CaseTensors = std::vector<std::unique_ptr<PartTensors>>;  // of each part

absl::StatusOr<CaseTensors> MakeCaseTensors(const Case& bench_case, cuda::Device& device);

}  // namespace attention::bench
