#include "tests/benchmark/cuda/ceilings.h"
#include "tests/benchmark/cuda/normal_values.h"

#if __has_include(<cublas_v2.h>)
#include <cublas_v2.h>
#include <dlfcn.h>

#include <string>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/plan/run_memory.h"
#endif

namespace attention::bench {

#if __has_include(<cublas_v2.h>)
namespace {

// A product that fills any GPU for a millisecond.
constexpr int kSize = 8192;

// C++ has a second cublasGemmEx, of another type of computation.
using Multiply = cublasStatus_t(cublasHandle_t, cublasOperation_t, cublasOperation_t, int m, int n,
                                int k, const void* alpha, const void* a, cudaDataType, int lda,
                                const void* b, cudaDataType, int ldb, const void* beta, void* c,
                                cudaDataType, int ldc, cublasComputeType_t, cublasGemmAlgo_t);

// The library's functions that are called, by the names of its header.
struct Functions {
  decltype(&cublasCreate_v2) create = nullptr;
  decltype(&cublasDestroy_v2) destroy = nullptr;
  decltype(&cublasSetStream_v2) set_stream = nullptr;
  Multiply* multiply = nullptr;
};

absl::StatusOr<Functions> Load() {
  // The library of another major version may have the names and not the types.
  const std::string name = absl::StrCat("libcublas.so.", CUBLAS_VER_MAJOR);
  void* library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return absl::UnavailableError(dlerror());
  const auto find = [&](const char* symbol, auto* function) {
    *function = reinterpret_cast<std::remove_pointer_t<decltype(function)>>(dlsym(library, symbol));
    return *function != nullptr;
  };
  Functions functions;
  if (!find("cublasCreate_v2", &functions.create) ||
      !find("cublasDestroy_v2", &functions.destroy) ||
      !find("cublasSetStream_v2", &functions.set_stream) ||
      !find("cublasGemmEx", &functions.multiply)) {
    return absl::UnavailableError(absl::StrCat(name, " lacks a function"));
  }
  return functions;
}

absl::Status ToStatus(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat(what, ": cuBLAS status ", status));
}

class Cublas final : public MatrixLibrary {
 public:
  Cublas(const Functions& functions, cuda::Device& device)
      : functions_(functions),
        device_(device),
        a_(device.memory()),
        b_(device.memory()),
        c_(device.memory()) {}
  ~Cublas() override {
    if (handle_ != nullptr) functions_.destroy(handle_);
  }

  absl::Status Open(void* stream) {
    absl::Status status = ToStatus(functions_.create(&handle_), "cublasCreate");
    if (status.ok()) {
      status = ToStatus(functions_.set_stream(handle_, static_cast<cudaStream_t>(stream)),
                        "cublasSetStream");
    }
    constexpr std::int64_t kCount = std::int64_t{kSize} * kSize;
    cuda::GrowingBuffer host(device_.host_memory());
    for (cuda::GrowingBuffer* buffer : {&host, &a_, &b_, &c_}) {
      if (status.ok()) status = buffer->Reserve(2 * kCount);
    }
    if (!status.ok()) return status;
    FillNormal(DType::kBFloat16, kCount, 1, host.data());
    status = device_.CopyToDevice(cuda::Stream::kCompute, a_.data(), host.data(), 2 * kCount);
    if (status.ok())
      status = device_.CopyToDevice(cuda::Stream::kCompute, b_.data(), host.data(), 2 * kCount);
    return status.ok() ? device_.Synchronize() : status;
  }

  absl::StatusOr<double> MeasureFlops(cuda::DeviceMeter& meter) override {
    absl::Status status = Enqueue();
    if (status.ok()) status = meter.Mark(0);
    if (status.ok()) status = Enqueue();
    if (status.ok()) status = meter.Mark(1);
    if (!status.ok()) return status;
    auto seconds = meter.SecondsBetween(0, 1);
    if (!seconds.ok()) return seconds.status();
    return 2.0 * kSize * kSize * kSize / *seconds;
  }

 private:
  absl::Status Enqueue() {
    const float one = 1, zero = 0;
    return ToStatus(
        functions_.multiply(handle_, CUBLAS_OP_T, CUBLAS_OP_N, kSize, kSize, kSize, &one, a_.data(),
                            CUDA_R_16BF, kSize, b_.data(), CUDA_R_16BF, kSize, &zero, c_.data(),
                            CUDA_R_16BF, kSize, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
        "cublasGemmEx");
  }

  const Functions functions_;
  cuda::Device& device_;
  cublasHandle_t handle_ = nullptr;
  cuda::GrowingBuffer a_, b_, c_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<MatrixLibrary>> LoadCublas(cuda::Device& device, void* stream) {
  if (stream == nullptr) return absl::UnavailableError("the device is not a GPU");
  auto functions = Load();
  if (!functions.ok()) return functions.status();
  auto library = std::make_unique<Cublas>(*functions, device);
  if (absl::Status status = library->Open(stream); !status.ok()) return status;
  return library;
}

#else

absl::StatusOr<std::unique_ptr<MatrixLibrary>> LoadCublas(cuda::Device&, void*) {
  return absl::UnavailableError("this program was built without its header");
}

#endif

}  // namespace attention::bench
