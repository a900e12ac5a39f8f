// Products of dense matrices as projections need them from a device: a library's, found at run
// time, with the kernels around it. The GPU's is in plugin/; tests have one of the host.
#pragma once

#include <array>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/api/dtype.h"
#include "kernels/cuda/contract/projection_types.h"

namespace attention::cuda {

// product [rows, out_features] = a [rows, in_features] b^T, with b [out_features, in_features], and
// with the bias added to each row if there is one. All dense and row-major; features are multiples
// of kPadElements.
struct MatmulShape {
  std::int64_t rows = 0;
  std::int64_t in_features = 0;
  std::int64_t out_features = 0;
  DType dtype = DType::kFloat32;  // of a and b: float32, float16 or bfloat16
  bool has_bias = true;

  auto operator<=>(const MatmulShape&) const = default;  // NOLINT(modernize-use-nullptr)
};

// One of the library's ways to compute a shape.
struct MatmulAlgorithm {
  std::array<std::uint64_t, 8> code = {};  // which the library alone can read
  std::size_t workspace_bytes = 0;

  auto operator<=>(const MatmulAlgorithm&) const = default;
};

// Device addresses, multiples of 256 bytes, but for the bias: 16.
struct MatmulArguments {
  const void* a = nullptr;
  const void* b = nullptr;
  const float* bias = nullptr;  // [out_features], if the shape has one
  float* product = nullptr;
};

// Thread-safety and order: the device's that it belongs to. Errors: the device's, and UNIMPLEMENTED
// for what the library refuses.
class MatmulDevice {
 public:
  virtual ~MatmulDevice() = default;

  // Those that sum a row's products in float32 and in one go, from the library's favourite on; a
  // function of the device's model, the library and the shape. Empty: none.
  virtual absl::StatusOr<std::vector<MatmulAlgorithm>> Algorithms(const MatmulShape& shape) = 0;

  // Operands are taken as they are: float32 is never rounded to fewer bits.
  virtual absl::Status Multiply(const MatmulShape& shape, const MatmulAlgorithm& algorithm,
                                const MatmulArguments& arguments) = 0;

  virtual absl::Status Split(int num_blocks, const SplitArguments& arguments) = 0;
  virtual absl::Status Finish(int num_blocks, const FinishArguments& arguments) = 0;
};

}  // namespace attention::cuda
