// Measures a device in its own time: marks in the order of its work, and what it can do at best.
#pragma once

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace attention::cuda {

// Thread-safety and errors: as the device's (device.h), which must outlive its meter.
class DeviceMeter {
 public:
  // Marks are numbered from 0.
  static constexpr int kNumMarks = 64;

  virtual ~DeviceMeter() = default;

  // Sets a mark behind everything launched so far. One that is set again loses its old place.
  virtual absl::Status Mark(int mark) = 0;
  // The device's time between two marks, in seconds. Waits for the later one.
  virtual absl::StatusOr<double> SecondsBetween(int begin, int end) = 0;

  // In order with launches. Afterwards the L2 cache holds other memory alone, and none that would
  // have to be written back.
  virtual absl::Status EvictCache() = 0;
  // In order with launches: about so long without touching memory, so that the host gets ahead and
  // what it launches next follows without gaps.
  virtual absl::Status Spin(double seconds) = 0;

  // Ceilings, measured now, a few milliseconds each. Zero: not known.
  virtual absl::StatusOr<double> MatrixFlops() = 0;  // of bfloat16 products, per second
  virtual absl::StatusOr<double> CopyBytes() = 0;    // read and written by a copy, per second
  virtual absl::StatusOr<double> ReadBytes() = 0;    // per second
  virtual absl::StatusOr<double> ClockHertz() = 0;   // of the multiprocessors

  // The queue that orders the device's work, a cudaStream_t, for other libraries to launch into;
  // null: there is none.
  virtual void* stream() const { return nullptr; }
};

}  // namespace attention::cuda
