// A contender computes a case on the device: the kernels, or a peer.
#pragma once

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/device/device.h"
#include "tests/benchmark/cuda/case_tensors.h"
#include "tests/benchmark/cuda/row_check.h"

namespace attention::bench {

inline constexpr char kOurs[] = "ours";

class Contender {
 public:
  virtual ~Contender() = default;

  virtual std::string name() const = 0;
  // Names of the kernels that run, or the form of a call.
  virtual std::string form() const = 0;
  // Called before each Launch and not timed: resets the memory that a launch counts in.
  virtual absl::Status Rewind() { return absl::OkStatus(); }
  // In the device's order, without waiting; inputs are in the device's memory.
  virtual absl::Status Launch() = 0;
  // Computes once more and waits, so that ReadRow gives the result of that.
  virtual absl::Status Compute() = 0;
  virtual absl::Status ReadRow(const RowRef& ref, std::vector<float>* row) = 0;
};

// The kernels, over pages of the server's default size. What Launch launches is all that a step
// does on the device between its two copies. The tensors must outlive it.
absl::StatusOr<std::unique_ptr<Contender>> MakeOurs(const Case& bench_case,
                                                    const CaseTensors& tensors,
                                                    std::shared_ptr<cuda::Device> device);

}  // namespace attention::bench
