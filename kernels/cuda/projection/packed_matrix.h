// Weights in device memory, and how they come there and back.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/api/projection.h"
#include "kernels/cuda/device/device.h"
#include "kernels/cuda/plan/run_memory.h"
#include "kernels/cuda/projection/matmul_choice.h"

namespace attention::cuda {

class WeightStore;

// A projection's weights, padded with zeros on both sides to kPadElements, in the type that its
// parts have: float32 if they differ.
class PackedMatrix final : public PackedProjection {
 public:
  struct Shape {
    std::int64_t in_features = 0;
    std::int64_t out_features = 0;
    DType dtype = DType::kFloat32;

    std::int64_t padded_in() const;
    std::int64_t padded_out() const;
    std::size_t row_bytes() const;     // of the weights
    std::size_t weight_bytes() const;  // the offsets of all three are multiples of 256 bytes
    std::size_t bias_bytes() const;
    std::size_t bytes() const;
  };

  // Takes `data`, which the store has filled.
  PackedMatrix(std::shared_ptr<WeightStore> store, const Shape& shape, char* data,
               std::shared_ptr<const MatmulBlocks> blocks);
  ~PackedMatrix() override;
  PackedMatrix(const PackedMatrix&) = delete;
  PackedMatrix& operator=(const PackedMatrix&) = delete;

  std::int64_t out_features() const override { return shape_.out_features; }
  std::int64_t in_features() const override { return shape_.in_features; }
  std::size_t bytes() const override { return shape_.bytes(); }
  absl::Status Unpack(float* weights, float* bias) const override;

  const Shape& shape() const { return shape_; }
  const std::vector<BlockAlgorithm>& blocks() const { return blocks_->sizes; }
  // True if products come with the bias.
  bool has_fused_bias() const { return blocks_->has_bias; }
  const char* weights() const { return data_; }  // [padded_out, padded_in]
  // [padded_out] each: the bias, and zeros for products that get it later.
  const float* bias() const {
    return reinterpret_cast<const float*>(data_ + shape_.weight_bytes());
  }
  const float* zeros() const {
    return reinterpret_cast<const float*>(data_ + shape_.weight_bytes() + shape_.bias_bytes());
  }

 private:
  const std::shared_ptr<WeightStore> store_;
  const Shape shape_;
  char* const data_;
  const std::shared_ptr<const MatmulBlocks> blocks_;
};

// Packs and unpacks, beside the thread that computes: over a device of its own, which is the same
// GPU in another order of work. Shared by the store's user and everything packed. Thread-safe.
class WeightStore : public std::enable_shared_from_this<WeightStore> {
 public:
  // `block_rows` as for ProbeAlgorithms. The device's matmuls() must be there.
  WeightStore(std::shared_ptr<Device> device, std::vector<std::int64_t> block_rows);

  // The errors of ProjectionBackend::Pack and of ProbeAlgorithms.
  absl::StatusOr<std::shared_ptr<const PackedMatrix>> Pack(std::int64_t in_features,
                                                           std::span<const ProjectionPart> parts);
  absl::Status Unpack(const PackedMatrix& matrix, float* weights, float* bias);
  void Free(char* data, std::size_t bytes) { device_->memory().Free(data, bytes); }

 private:
  // Gives or takes a run of rows [first, first + count) in host memory.
  using RowsUser = std::function<void(std::int64_t first, std::int64_t count, char* host)>;

  absl::Status Upload(char* to, std::int64_t num_rows, std::size_t row_bytes, const RowsUser& fill);
  absl::Status Download(const char* from, std::int64_t num_rows, std::size_t row_bytes,
                        const RowsUser& use);
  absl::Status Fill(const PackedMatrix::Shape& shape, std::span<const ProjectionPart> parts,
                    char* data);
  absl::StatusOr<std::shared_ptr<const MatmulBlocks>> BlocksFor(const PackedMatrix::Shape& shape);

  const std::shared_ptr<Device> device_;
  const std::vector<std::int64_t> block_rows_;

  std::mutex mutex_;  // of the device, and of what follows
  GrowingBuffer staging_;
  // Layers of one shape share them.
  std::map<MatmulShape, std::weak_ptr<const MatmulBlocks>> blocks_;
};

}  // namespace attention::cuda
