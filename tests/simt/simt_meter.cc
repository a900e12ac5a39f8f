#include "tests/simt/simt_meter.h"

#include <array>
#include <chrono>
#include <utility>

namespace attention::simt {
namespace {

// Queued work is done at a mark, which is a reading of a clock.
class SimtMeter final : public cuda::DeviceMeter {
 public:
  explicit SimtMeter(std::function<void()> drain) : drain_(std::move(drain)) {}

  absl::Status Mark(int mark) override {
    drain_();
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
  const std::function<void()> drain_;
  std::array<std::chrono::steady_clock::time_point, kNumMarks> marks_ = {};
};

}  // namespace

std::unique_ptr<cuda::DeviceMeter> MakeSimtMeter(std::function<void()> drain) {
  return std::make_unique<SimtMeter>(std::move(drain));
}

}  // namespace attention::simt
