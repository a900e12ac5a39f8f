#include "kernels/cuda/plugin/plugin_loader.h"
#include "tests/benchmark/cuda/bench_main.h"

namespace attention::bench {

absl::StatusOr<std::shared_ptr<cuda::Device>> OpenBenchDevice(int ordinal) {
  return cuda::OpenCudaDevice({.device = ordinal});
}

}  // namespace attention::bench
