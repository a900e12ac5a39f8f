#include <optional>

#include "kernels/cuda/cuda_backend.h"
#include "tests/simt/simt_device.h"
#include "tests/support/cuda_backends.h"

namespace attention::testing {
namespace {

// Blocks so small that a probe of the host's products is quick.
cuda::CudaBackendOptions OptionsOf(std::uint32_t seed, double launch_flops) {
  return {.launch_flops = launch_flops,
          .packing_device = simt::MakeSimtDevice(seed + 1000),
          .projections = {.block_rows = {4, 8, 32}, .max_round_bytes = std::size_t{1} << 20}};
}

}  // namespace

std::unique_ptr<AttentionBackend> MakeCuda(std::uint32_t seed, double launch_flops) {
  return cuda::MakeCudaBackend(simt::MakeSimtDevice(seed), OptionsOf(seed, launch_flops));
}

std::unique_ptr<AttentionBackend> MakeCudaHopper(std::uint32_t seed, double launch_flops) {
  return cuda::MakeCudaBackend(simt::MakeSimtDevice(seed, /*has_wgmma=*/true),
                               OptionsOf(seed, launch_flops));
}

std::unique_ptr<AttentionBackend> MakeCudaOverlapping(std::size_t part_bytes, int order,
                                                      double launch_flops) {
  std::optional<simt::EagerStreams> eager;
  if (order < kNumStreamOrders - 1) eager = static_cast<simt::EagerStreams>(order);
  return cuda::MakeCudaBackend(
      simt::MakeSimtDevice(/*seed=*/1, /*has_wgmma=*/false, eager),
      {.launch_flops = launch_flops, .part_bytes = part_bytes, .direct_bytes = part_bytes});
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
