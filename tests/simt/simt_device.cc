#include "tests/simt/simt_device.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <mutex>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/kernels/generic/append.h"
#include "kernels/cuda/kernels/generic/dispatch.h"
#include "kernels/cuda/kernels/sm90/dispatch.h"
#include "tests/simt/block.h"
#include "tests/simt/simt_matmuls.h"
#include "tests/simt/simt_meter.h"

namespace attention::simt {
namespace {

using namespace attention::cuda;  // NOLINT: the device's words

// Freed memory is poisoned, and kept for as long as work is queued that may still touch it: a copy
// or kernel that comes too late reads NaN, and writes to memory that nothing else uses.
class HeapAllocator final : public MemoryAllocator {
 public:
  HeapAllocator(const StreamQueues& streams, std::size_t capacity)
      : streams_(streams), free_(capacity) {}
  ~HeapAllocator() override { Release(); }

  void* Allocate(std::size_t bytes) override {
    const std::lock_guard lock(mutex_);
    if (bytes > free_) return nullptr;
    if (streams_.is_idle()) Release();
    void* memory = std::aligned_alloc(256, (std::max<std::size_t>(bytes, 1) + 255) / 256 * 256);
    if (memory == nullptr) return nullptr;
    std::memset(memory, 0xff, bytes);
    free_ -= bytes;
    return memory;
  }
  void Free(void* memory, std::size_t bytes) override {
    const std::lock_guard lock(mutex_);
    std::memset(memory, 0xff, bytes);
    freed_.push_back(memory);
    free_ += bytes;
  }
  bool outlives_backend() const override { return false; }
  std::size_t free_bytes() const override {
    const std::lock_guard lock(mutex_);
    return free_;
  }

 private:
  void Release() {
    for (void* memory : freed_) std::free(memory);
    freed_.clear();
  }

  const StreamQueues& streams_;
  mutable std::mutex mutex_;
  std::size_t free_;
  std::vector<void*> freed_;
};

struct SimtEvent final : Event {
  StreamQueues::Point point;
};

class SimtDevice final : public Device {
 public:
  SimtDevice(std::uint32_t seed, bool has_wgmma, std::optional<EagerStreams> eager,
             std::size_t memory_bytes)
      : streams_(seed, eager),
        memory_(streams_, memory_bytes),
        seed_(seed),
        properties_{.name = "host",
                    .architecture = has_wgmma ? "simt_90" : "simt",
                    .num_multiprocessors = 3,
                    .has_wgmma = has_wgmma},
        matmuls_(MakeSimtMatmuls(seed, [this](std::function<void()> work) {
          streams_.Enqueue(Stream::kCompute, std::move(work));
        })) {}

  const DeviceProperties& properties() const override { return properties_; }
  MemoryAllocator& memory() override { return memory_; }
  MemoryAllocator& host_memory() override { return host_memory_; }

  absl::Status CopyToDevice(Stream stream, void* device, const void* host,
                            std::size_t bytes) override {
    streams_.Enqueue(stream, [=] {
      if (bytes > 0) std::memcpy(device, host, bytes);
    });
    return absl::OkStatus();
  }
  absl::Status CopyToHost(Stream stream, void* host, const void* device,
                          std::size_t bytes) override {
    return CopyToDevice(stream, host, device, bytes);
  }

  absl::Status CopyOnDevice(void* to, const void* from, std::size_t bytes) override {
    return CopyToDevice(Stream::kCompute, to, from, bytes);
  }

  bool IsPinned(const void*) const override { return true; }

  absl::Status Launch(const KernelId& id, int num_blocks,
                      const AttendArguments& arguments) override {
    const auto run = [&](auto* kernel) { Run(kernel, num_blocks, arguments); };
    bool is_known = false;
    if (id.family == KernelFamily::kAttendFloat) {
      is_known = DispatchHeadDim<AttendFloat>(id.head_dim, run);
    } else if (id.family == KernelFamily::kRowTotals) {
      is_known = DispatchHeadDim<RowTotals>(id.head_dim, run);
    } else if (id.family == KernelFamily::kAttendWgmma) {
      is_known = id.dtype == DType::kFloat16 ? DispatchWgmma<DType::kFloat16>(id.head_dim, run)
                                             : DispatchWgmma<DType::kBFloat16>(id.head_dim, run);
    } else if (id.family == KernelFamily::kAttendDecodeBulk) {
      is_known = DispatchDecodeBulk(id.dtype, id.kv_dtype, id.head_dim, run);
    } else if (id.kv_dtype == DType::kInt8) {
      is_known = DispatchMma<DType::kBFloat16, DType::kInt8>(id.head_dim, id.tile_rows, run);
    } else if (id.kv_dtype == DType::kFloat8E4M3) {
      is_known = DispatchMma<DType::kBFloat16, DType::kFloat8E4M3>(id.head_dim, id.tile_rows, run);
    } else if (id.dtype == DType::kFloat16) {
      is_known = DispatchMma<DType::kFloat16, DType::kFloat16>(id.head_dim, id.tile_rows, run);
    } else {
      is_known = DispatchMma<DType::kBFloat16, DType::kBFloat16>(id.head_dim, id.tile_rows, run);
    }
    return Known(id, is_known);
  }
  absl::Status Launch(const KernelId& id, int num_blocks,
                      const ProbeArguments& arguments) override {
    return Known(id, DispatchHeadDim<Probe>(
                         id.head_dim, [&](auto* kernel) { Run(kernel, num_blocks, arguments); }));
  }
  absl::Status Launch(const KernelId&, int num_blocks, const AppendArguments& arguments) override {
    Run(static_cast<Append*>(nullptr), num_blocks, arguments);
    return absl::OkStatus();
  }

  absl::StatusOr<MatmulDevice*> matmuls() override { return matmuls_.get(); }

  absl::StatusOr<std::unique_ptr<Event>> MakeEvent() override {
    return std::make_unique<SimtEvent>();
  }
  absl::Status Record(Event& event, Stream stream) override {
    static_cast<SimtEvent&>(event).point = streams_.End(stream);
    return absl::OkStatus();
  }
  absl::Status Wait(Stream stream, const Event& event) override {
    streams_.Wait(stream, static_cast<const SimtEvent&>(event).point);
    return absl::OkStatus();
  }
  absl::Status Await(const Event& event) override {
    streams_.Reach(static_cast<const SimtEvent&>(event).point);
    return absl::OkStatus();
  }
  absl::Status Synchronize() override {
    streams_.Drain();
    return absl::OkStatus();
  }
  void Abandon() override {}
  DeviceCeilings MeasureCeilings() override { return {}; }
  std::unique_ptr<DeviceMeter> MakeMeter() override {
    return MakeSimtMeter([this] { streams_.Drain(); });
  }

 private:
  template <typename Kernel>
  void Run(Kernel*, int num_blocks, const typename Kernel::Arguments& arguments) {
    streams_.Enqueue(Stream::kCompute, [this, num_blocks, arguments] {
      RunBlocks(num_blocks, Kernel::kThreads, Kernel::kSharedBytes, seed_++,
                [&](char* shared) { Kernel::Run(arguments, shared); });
    });
  }

  static absl::Status Known(const KernelId& id, bool is_known) {
    if (is_known) return absl::OkStatus();
    return absl::InternalError(absl::StrCat("no kernel is named ", KernelIdName(id)));
  }

  StreamQueues streams_;
  HeapAllocator memory_;
  HeapAllocator host_memory_{streams_, kPlenty};
  std::uint32_t seed_;
  const DeviceProperties properties_;
  const std::unique_ptr<MatmulDevice> matmuls_;
};

}  // namespace

std::shared_ptr<cuda::Device> MakeSimtDevice(std::uint32_t seed, bool has_wgmma,
                                             std::optional<EagerStreams> eager,
                                             std::size_t memory_bytes) {
  return std::make_shared<SimtDevice>(seed, has_wgmma, eager, memory_bytes);
}

}  // namespace attention::simt
