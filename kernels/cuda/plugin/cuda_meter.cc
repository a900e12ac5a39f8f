#include "kernels/cuda/plugin/cuda_meter.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <string>

#include "kernels/cuda/kernels/generic/meter.h"
#include "kernels/cuda/kernels/sm90/wgmma_peak.h"
#include "kernels/cuda/plugin/status.h"

namespace attention::cuda {
namespace {

// Bytes that are read or copied to measure memory: many times any L2 cache.
constexpr std::size_t kMemoryBytes = std::size_t{1} << 30;
// Rounds of launches that measure the matrix units: about 3 ms of an H100 each, in which its clock
// has come to rest.
constexpr int kWgmmaRounds = 4000;
constexpr int kMmaRounds = 8000;
constexpr double kClockSeconds = 1e-3;

class CudaMeter final : public DeviceMeter {
 public:
  CudaMeter(int ordinal, bool has_wgmma, cudaStream_t stream)
      : ordinal_(ordinal), has_wgmma_(has_wgmma), stream_(stream) {}

  ~CudaMeter() override {
    for (cudaEvent_t event : events_) {
      if (event != nullptr) cudaEventDestroy(event);
    }
    cudaFree(memory_);
  }

  absl::Status Mark(int mark) override {
    cudaSetDevice(ordinal_);
    cudaEvent_t& event = events_.at(mark);
    if (event == nullptr) {
      if (absl::Status made = ToStatus(cudaEventCreate(&event), "making an event"); !made.ok()) {
        return made;
      }
    }
    return ToStatus(cudaEventRecord(event, stream_), "recording an event");
  }

  absl::StatusOr<double> SecondsBetween(int begin, int end) override {
    cudaSetDevice(ordinal_);
    absl::Status waited = ToStatus(cudaEventSynchronize(events_.at(end)), "computing");
    if (!waited.ok()) return waited;
    float milliseconds = 0;
    absl::Status status =
        ToStatus(cudaEventElapsedTime(&milliseconds, events_.at(begin), events_.at(end)),
                 "reading the time between events");
    if (!status.ok()) return status;
    return milliseconds / 1000.0;
  }

  absl::Status EvictCache() override {
    if (absl::Status status = Prepare(); !status.ok()) return status;
    return ToStatus(LaunchTouch(memory_, evict_bytes_, 4 * num_multiprocessors_, out(), stream_),
                    "evicting the cache");
  }

  absl::Status Spin(double seconds) override {
    if (absl::Status status = Prepare(); !status.ok()) return status;
    return ToStatus(LaunchSpin(static_cast<std::uint64_t>(seconds * 1e9), times(), stream_),
                    "spinning");
  }

  absl::StatusOr<double> MatrixFlops() override {
    if (absl::Status status = Prepare(); !status.ok()) return status;
    if (has_wgmma_) {
      return Rate(kWgmmaRoundFlops * kWgmmaRounds * num_multiprocessors_, [&] {
        return LaunchWgmmaPeak(num_multiprocessors_, kWgmmaRounds, out(), stream_);
      });
    }
    // Rounds of 8 m16n8k16 for each of a block's 8 warps (generic/meter.h).
    const int blocks = 4 * num_multiprocessors_;
    return Rate(8.0 * blocks * kMmaRounds * 8 * 2 * 16 * 8 * 16,
                [&] { return LaunchMmaPeak(blocks, kMmaRounds, out(), stream_); });
  }

  absl::StatusOr<double> CopyBytes() override {
    if (absl::Status status = Prepare(); !status.ok()) return status;
    constexpr std::size_t kHalf = kMemoryBytes / 2;
    return Rate(kMemoryBytes, [&] {
      return cudaMemcpyAsync(memory_ + kHalf, memory_, kHalf, cudaMemcpyDeviceToDevice, stream_);
    });
  }

  absl::StatusOr<double> ReadBytes() override {
    if (absl::Status status = Prepare(); !status.ok()) return status;
    return Rate(kMemoryBytes, [&] {
      return LaunchRead(memory_, kMemoryBytes, 4 * num_multiprocessors_, out(), stream_);
    });
  }

  absl::StatusOr<double> ClockHertz() override {
    if (absl::Status status = Spin(kClockSeconds); !status.ok()) return status;
    SpinTimes seen;
    absl::Status status = ToStatus(
        cudaMemcpyAsync(&seen, times(), sizeof(seen), cudaMemcpyDeviceToHost, stream_), "copying");
    if (status.ok()) status = ToStatus(cudaStreamSynchronize(stream_), "computing");
    if (!status.ok()) return status;
    return static_cast<double>(seen.cycles) / static_cast<double>(seen.nanoseconds) * 1e9;
  }

  void* stream() const override { return stream_; }

 private:
  // The last marks are the meter's own.
  static constexpr int kBegin = kNumMarks, kEnd = kNumMarks + 1;
  static constexpr std::size_t kTailBytes = 256;

  float* out() const { return reinterpret_cast<float*>(memory_ + kMemoryBytes); }
  SpinTimes* times() const {
    return reinterpret_cast<SpinTimes*>(memory_ + kMemoryBytes + kTailBytes / 2);
  }

  absl::Status Prepare() {
    cudaSetDevice(ordinal_);
    if (memory_ != nullptr) return absl::OkStatus();
    int l2_bytes = 0;
    absl::Status status = ToStatus(
        cudaDeviceGetAttribute(&num_multiprocessors_, cudaDevAttrMultiProcessorCount, ordinal_),
        "reading the device's properties");
    if (!status.ok()) return status;
    status = ToStatus(cudaDeviceGetAttribute(&l2_bytes, cudaDevAttrL2CacheSize, ordinal_),
                      "reading the device's properties");
    if (!status.ok()) return status;
    // Four times, because a cache need not drop its oldest line first.
    evict_bytes_ = std::min<std::size_t>(kMemoryBytes, std::size_t{4} * l2_bytes);
    status = ToStatus(cudaMalloc(reinterpret_cast<void**>(&memory_), kMemoryBytes + kTailBytes),
                      "allocating what measures memory");
    if (!status.ok()) return status;
    // Not zeros, which some memories keep compressed.
    return ToStatus(cudaMemsetAsync(memory_, 0x5a, kMemoryBytes + kTailBytes, stream_),
                    "filling memory");
  }

  // Work by the time of the second of two launches.
  template <typename Launch>
  absl::StatusOr<double> Rate(double work, const Launch& launch) {
    absl::Status status = ToStatus(launch(), "measuring");
    if (status.ok()) status = Mark(kBegin);
    if (status.ok()) status = ToStatus(launch(), "measuring");
    if (status.ok()) status = Mark(kEnd);
    if (!status.ok()) return status;
    auto seconds = SecondsBetween(kBegin, kEnd);
    if (!seconds.ok()) return seconds.status();
    return work / *seconds;
  }

  const int ordinal_;
  const bool has_wgmma_;
  const cudaStream_t stream_;
  std::array<cudaEvent_t, kNumMarks + 2> events_ = {};
  char* memory_ = nullptr;
  int num_multiprocessors_ = 0;
  std::size_t evict_bytes_ = 0;
};

}  // namespace

std::unique_ptr<DeviceMeter> MakeCudaMeter(int ordinal, bool has_wgmma, cudaStream_t stream) {
  return std::make_unique<CudaMeter>(ordinal, has_wgmma, stream);
}

}  // namespace attention::cuda
