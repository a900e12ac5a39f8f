// The device's best rates, measured beside each case.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "kernels/cuda/device/device.h"
#include "kernels/cuda/device/device_meter.h"
#include "tests/benchmark/cuda/cases.h"

namespace attention::bench {

// Zero: not known.
struct Ceilings {
  double matrix_flops = 0;  // of bfloat16 products per second; of cuBLAS, where it could be loaded
  double loop_flops = 0;    // the same of instructions alone, on operands that do not move
  double copy_bytes = 0;    // read and written per second
  double read_bytes = 0;
  double clock_hertz = 0;
};

// The bound of a case, and the least time that it could need.
struct Roofline {
  double seconds = 0;      // 0: not known
  bool is_matrix = false;  // else memory, by the rate of a copy
};
Roofline RooflineOf(const Work& work, const Ceilings& ceilings);

// The rate of a large product through a library of the machine.
class MatrixLibrary {
 public:
  virtual ~MatrixLibrary() = default;
  virtual absl::StatusOr<double> MeasureFlops(cuda::DeviceMeter& meter) = 0;  // per second
};

// cuBLAS, loaded at run time. UNAVAILABLE says why not.
absl::StatusOr<std::unique_ptr<MatrixLibrary>> LoadCublas(cuda::Device& device, void* stream);

// Takes samples; the medians of all of them count.
class CeilingSamples {
 public:
  absl::Status Take(cuda::DeviceMeter& meter, MatrixLibrary* library);
  Ceilings Medians() const;

 private:
  std::vector<Ceilings> samples_;
};

}  // namespace attention::bench
