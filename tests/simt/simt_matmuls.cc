#include "tests/simt/simt_matmuls.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "kernels/cuda/kernels/generic/finish_rows.h"
#include "kernels/cuda/kernels/generic/split_rows.h"
#include "tests/simt/block.h"
#include "tests/simt/element_table.h"

namespace attention::simt {
namespace {

using namespace attention::cuda;  // NOLINT: the device's words

std::vector<float> ToFloats(const void* data, std::int64_t count, DType dtype) {
  if (dtype == DType::kFloat32) {
    const auto* floats = static_cast<const float*>(data);
    return {floats, floats + count};
  }
  const auto* bits = static_cast<const std::uint16_t*>(data);
  const std::vector<float>& table = FloatsOf(dtype);
  std::vector<float> floats(static_cast<std::size_t>(count));
  std::transform(bits, bits + count, floats.begin(), [&](std::uint16_t bit) { return table[bit]; });
  return floats;
}

// Chains that do not wait for each other.
constexpr std::int64_t kColumns = 16;

void MultiplyRow(const float* a, const float* b, const float* bias, std::int64_t in_features,
                 std::int64_t out_features, bool is_ascending, float* product) {
  for (std::int64_t out = 0; out < out_features; out += kColumns) {
    float sums[kColumns] = {};
    for (std::int64_t i = 0; i < in_features; ++i) {
      const std::int64_t in = is_ascending ? i : in_features - 1 - i;
      for (std::int64_t j = 0; j < kColumns; ++j) {
        sums[j] += a[in] * b[(out + j) * in_features + in];
      }
    }
    for (std::int64_t j = 0; j < kColumns; ++j) {
      product[out + j] = bias == nullptr ? sums[j] : sums[j] + bias[out + j];
    }
  }
}

class SimtMatmuls final : public MatmulDevice {
 public:
  SimtMatmuls(std::uint32_t seed, Enqueue enqueue) : seed_(seed), enqueue_(std::move(enqueue)) {}

  absl::StatusOr<std::vector<MatmulAlgorithm>> Algorithms(const MatmulShape& shape) override {
    std::vector<MatmulAlgorithm> algorithms;
    if (shape.has_bias && shape.dtype == DType::kFloat32) return algorithms;
    for (SumOrder order : {SumOrder::kRefused, SumOrder::kByPlace, SumOrder::kAscendingIfSmall,
                           SumOrder::kAscending}) {
      algorithms.push_back({{static_cast<std::uint64_t>(order)}, 0});
    }
    return algorithms;
  }

  absl::Status Multiply(const MatmulShape& shape, const MatmulAlgorithm& algorithm,
                        const MatmulArguments& arguments) override {
    const auto order = static_cast<SumOrder>(algorithm.code[0]);
    if (order == SumOrder::kRefused) return absl::UnimplementedError("refused");
    enqueue_([=] { MultiplyRows(shape, order, arguments); });
    return absl::OkStatus();
  }

  absl::Status Split(int num_blocks, const SplitArguments& arguments) override {
    return Run<SplitRows>(num_blocks, arguments);
  }
  absl::Status Finish(int num_blocks, const FinishArguments& arguments) override {
    return Run<FinishRows>(num_blocks, arguments);
  }

 private:
  static void MultiplyRows(const MatmulShape& shape, SumOrder order,
                           const MatmulArguments& arguments) {
    const std::vector<float> a = ToFloats(arguments.a, shape.rows * shape.in_features, shape.dtype);
    const std::vector<float> b =
        ToFloats(arguments.b, shape.out_features * shape.in_features, shape.dtype);
    for (std::int64_t row = 0; row < shape.rows; ++row) {
      const bool is_ascending =
          order == SumOrder::kAscending ||
          (order == SumOrder::kAscendingIfSmall ? shape.rows < kSmallRows : row % 2 == 0);
      MultiplyRow(a.data() + row * shape.in_features, b.data(),
                  shape.has_bias ? arguments.bias : nullptr, shape.in_features, shape.out_features,
                  is_ascending, arguments.product + row * shape.out_features);
    }
  }

  template <typename Kernel>
  absl::Status Run(int num_blocks, const typename Kernel::Arguments& arguments) {
    enqueue_([this, num_blocks, arguments] {
      RunBlocks(num_blocks, Kernel::kThreads, Kernel::kSharedBytes, seed_++,
                [&](char* shared) { Kernel::Run(arguments, shared); });
    });
    return absl::OkStatus();
  }

  std::uint32_t seed_;
  const Enqueue enqueue_;
};

}  // namespace

std::unique_ptr<MatmulDevice> MakeSimtMatmuls(std::uint32_t seed, Enqueue enqueue) {
  return std::make_unique<SimtMatmuls>(seed, std::move(enqueue));
}

}  // namespace attention::simt
