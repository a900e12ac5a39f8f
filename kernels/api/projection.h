// Projections, y = x W^T + b, on one device: what turns embeddings into queries, keys and values,
// and attention's output back into embeddings.
//
// Batch invariance, as for attention: the bits of a row of y depend on that row of x and on the
// weights. Not on the rows beside it, on their number, on the number of threads, or on how rows
// were cut into tasks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/api/dtype.h"
#include "kernels/api/rotary.h"

namespace attention {

// One weight matrix as the caller has it: dense, row-major, any alignment.
struct ProjectionPart {
  std::int64_t out_features = 0;
  DType dtype = DType::kFloat32;  // float32, float16 or bfloat16; of the bias, too
  const void* weights = nullptr;  // [out_features, in_features]
  const void* bias = nullptr;     // [out_features], may be null: zeros
};

// Weights in the order in which the device reads them. Immutable.
class PackedProjection {
 public:
  virtual ~PackedProjection() = default;

  virtual std::int64_t out_features() const = 0;  // of all parts
  virtual std::int64_t in_features() const = 0;
  virtual std::size_t bytes() const = 0;  // of memory held

  // Gives the weights back: [out_features, in_features] and [out_features]. Exactly the values that
  // were packed, as every dtype's are float32's, too. The device's errors. Thread-safe, beside
  // Project too.
  virtual absl::Status Unpack(float* weights, float* bias) const = 0;

  // True once its memory is gone with the backend that packed it: nothing can be done with it then
  // but to let go of it.
  virtual bool is_lost() const { return false; }
};

// Rows through one projection. float32, float16 or bfloat16 on either side, arithmetic in float32;
// y is rounded once, to nearest.
struct ProjectionTask {
  const PackedProjection* projection = nullptr;
  std::int64_t num_rows = 0;
  const void* x = nullptr;  // [num_rows, in_features], any alignment
  DType x_dtype = DType::kFloat32;
  std::int64_t x_stride = 0;  // between rows, in elements
  void* y = nullptr;          // [num_rows, out_features]; not x
  DType y_dtype = DType::kFloat32;
  std::int64_t y_stride = 0;

  // Rotates the first num_rotary_heads heads of y, of rotary_head_dim elements each, row i at
  // position first_position + i. Null: none; else y is float32.
  const Rotary* rotary = nullptr;
  int num_rotary_heads = 0;
  int rotary_head_dim = 0;
  std::int64_t first_position = 0;
};

class ProjectionBackend {
 public:
  virtual ~ProjectionBackend() = default;

  // Packs matrices of equal in_features as one: their outputs stand beside each other in y, in
  // order, for one pass over x. RESOURCE_EXHAUSTED when memory is out. Thread-safe, beside Project
  // too.
  virtual absl::StatusOr<std::shared_ptr<const PackedProjection>> Pack(
      std::int64_t in_features, std::span<const ProjectionPart> parts) = 0;
  // The most that `bytes` of the packed parts can be.
  virtual std::size_t PackedBytes(std::int64_t in_features, std::int64_t out_features) const = 0;

  // Arithmetic of about a millisecond: long tasks are cut into calls of it, and others run between.
  virtual double chunk_flops() const { return 2e8; }  // of a few cores

  // Computes every task and blocks until done. Tasks of one projection share their passes over its
  // weights. The projections are this backend's. By the thread that owns the device.
  virtual absl::Status Project(std::span<const ProjectionTask> tasks) = 0;
};

}  // namespace attention
