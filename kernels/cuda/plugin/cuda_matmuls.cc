#include "kernels/cuda/plugin/cuda_matmuls.h"

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/kernels/generic/launches.h"
#include "kernels/cuda/plugin/cublaslt.h"
#include "kernels/cuda/plugin/cublaslt_products.h"
#include "kernels/cuda/plugin/status.h"

namespace attention::cuda {
namespace {

class CudaMatmuls final : public MatmulDevice {
 public:
  CudaMatmuls(int ordinal, std::shared_ptr<DeviceContext> context, cudaStream_t stream,
              std::unique_ptr<CublasLtProducts> products)
      : ordinal_(ordinal),
        context_(std::move(context)),
        stream_(stream),
        products_(std::move(products)) {}

  ~CudaMatmuls() override {
    // The library's memory in a lost context is left alone, as everything in it.
    if (context_->is_lost()) (void)products_.release();
  }

  absl::StatusOr<std::vector<MatmulAlgorithm>> Algorithms(const MatmulShape& shape) override {
    if (absl::Status status = Enter(); !status.ok()) return status;
    return products_->Algorithms(shape);
  }

  absl::Status Multiply(const MatmulShape& shape, const MatmulAlgorithm& algorithm,
                        const MatmulArguments& arguments) override {
    if (absl::Status status = Enter(); !status.ok()) return status;
    absl::Status status = products_->Multiply(shape, algorithm, arguments);
    // The library's own errors do not say whether the context has failed.
    if (status.code() == absl::StatusCode::kInternal) LoseIfSticky(cudaGetLastError());
    return status;
  }

  absl::Status Split(int num_blocks, const SplitArguments& arguments) override {
    if (absl::Status status = Enter(); !status.ok()) return status;
    return Told(LaunchSplitRows(num_blocks, arguments, stream_), "splitting rows");
  }

  absl::Status Finish(int num_blocks, const FinishArguments& arguments) override {
    if (absl::Status status = Enter(); !status.ok()) return status;
    return Told(LaunchFinishRows(num_blocks, arguments, stream_), "finishing rows");
  }

 private:
  absl::Status Enter() {
    if (context_->is_lost()) {
      return absl::InternalError("multiplying: the context was lost before");
    }
    cudaSetDevice(ordinal_);
    return absl::OkStatus();
  }

  void LoseIfSticky(cudaError_t error) {
    if (IsSticky(error)) context_->Lose();
  }

  absl::Status Told(cudaError_t error, const char* what) {
    LoseIfSticky(error);
    return ToStatus(error, what);
  }

  const int ordinal_;
  const std::shared_ptr<DeviceContext> context_;
  const cudaStream_t stream_;
  std::unique_ptr<CublasLtProducts> products_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<MatmulDevice>> MakeCudaMatmuls(
    int ordinal, std::shared_ptr<DeviceContext> context, MemoryAllocator& memory,
    cudaStream_t stream) {
  const absl::StatusOr<CublasLt>& library = LoadCublasLt();
  if (!library.ok()) return library.status();
  auto products = CublasLtProducts::Make(*library, memory, stream);
  if (!products.ok()) return products.status();
  return std::make_unique<CudaMatmuls>(ordinal, std::move(context), stream, *std::move(products));
}

}  // namespace attention::cuda
