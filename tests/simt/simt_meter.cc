#include "tests/simt/simt_meter.h"

#include <array>
#include <chrono>

namespace attention::simt {
namespace {

// Launches have ended when they return, so marks are readings of a clock.
class SimtMeter final : public cuda::DeviceMeter {
 public:
  absl::Status Mark(int mark) override {
    marks_.at(mark) = std::chrono::steady_clock::now();
    return absl::OkStatus();
  }
  absl::StatusOr<double> SecondsBetween(int begin, int end) override {
    return std::chrono::duration<double>(marks_.at(end) - marks_.at(begin)).count();
  }
  absl::Status EvictCache() override { return absl::OkStatus(); }
  absl::Status Spin(double) override { return absl::OkStatus(); }
  absl::StatusOr<double> MatrixFlops() override { return 0.0; }
  absl::StatusOr<double> CopyBytes() override { return 0.0; }
  absl::StatusOr<double> ReadBytes() override { return 0.0; }
  absl::StatusOr<double> ClockHertz() override { return 0.0; }

 private:
  std::array<std::chrono::steady_clock::time_point, kNumMarks> marks_ = {};
};

}  // namespace

std::unique_ptr<cuda::DeviceMeter> MakeSimtMeter() { return std::make_unique<SimtMeter>(); }

}  // namespace attention::simt
