#include "kernels/cuda/cuda_backend.h"
#include "tests/simt/simt_device.h"
#include "tests/support/cuda_backends.h"

namespace attention::testing {

std::unique_ptr<AttentionBackend> MakeCuda(std::uint32_t seed, double step_flops) {
  return cuda::MakeCudaBackend(simt::MakeSimtDevice(seed), {.step_flops = step_flops});
}

std::unique_ptr<AttentionBackend> MakeCudaHopper(std::uint32_t seed, double step_flops) {
  return cuda::MakeCudaBackend(simt::MakeSimtDevice(seed, /*has_wgmma=*/true),
                               {.step_flops = step_flops});
}

AttentionBackend& Cuda() {
  static auto* backend = MakeCuda().release();
  return *backend;
}

AttentionBackend& CudaHopper() {
  static auto* backend = MakeCudaHopper().release();
  return *backend;
}

}  // namespace attention::testing
