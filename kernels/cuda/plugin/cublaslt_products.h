// Products through cuBLASLt, on one stream of one device.
#pragma once

#include <cublasLt.h>

#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/api/attention_backend.h"
#include "kernels/cuda/device/matmul.h"
#include "kernels/cuda/plan/run_memory.h"
#include "kernels/cuda/plugin/cublaslt.h"

namespace attention::cuda {

// The most that an algorithm may take. NVIDIA's advice for compute capability 9.0 (cuBLAS
// documentation, "Workspace").
inline constexpr std::size_t kMaxMatmulWorkspace = std::size_t{32} << 20;

// Algorithms and Multiply of MatmulDevice. Thread-safety: one thread at a time.
class CublasLtProducts {
 public:
  // `memory` of the device, `stream` on it; all must outlive it. UNAVAILABLE when the library does
  // not start.
  static absl::StatusOr<std::unique_ptr<CublasLtProducts>> Make(const CublasLt& library,
                                                                MemoryAllocator& memory,
                                                                cudaStream_t stream);
  ~CublasLtProducts();
  CublasLtProducts(const CublasLtProducts&) = delete;
  CublasLtProducts& operator=(const CublasLtProducts&) = delete;

  absl::StatusOr<std::vector<MatmulAlgorithm>> Algorithms(const MatmulShape& shape);
  absl::Status Multiply(const MatmulShape& shape, const MatmulAlgorithm& algorithm,
                        const MatmulArguments& arguments);

 private:
  CublasLtProducts(const CublasLt& library, MemoryAllocator& memory, cudaStream_t stream)
      : library_(library), stream_(stream), workspace_(memory) {}

  absl::Status ToStatus(cublasStatus_t status, const char* what) const;
  // True if it says that a row's products are summed in several places. One that does not say is
  // left to the probe.
  bool IsSplit(const cublasLtMatmulAlgo_t& algorithm) const;

  const CublasLt& library_;
  const cudaStream_t stream_;
  cublasLtHandle_t handle_ = nullptr;
  GrowingBuffer workspace_;
};

}  // namespace attention::cuda
