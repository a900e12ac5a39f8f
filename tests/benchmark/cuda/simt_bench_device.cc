#include "tests/benchmark/cuda/bench_main.h"
#include "tests/simt/simt_device.h"

namespace attention::bench {

absl::StatusOr<std::shared_ptr<cuda::Device>> OpenBenchDevice(int) {
  return simt::MakeSimtDevice(/*seed=*/1, /*has_wgmma=*/true);
}

}  // namespace attention::bench
