#include "tests/simt/simt_device.h"

#include <cstdlib>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/sm80/append.h"
#include "kernels/cuda/sm80/dispatch.h"
#include "kernels/cuda/sm90/dispatch.h"
#include "tests/simt/block.h"
#include "tests/simt/simt_meter.h"

namespace attention::simt {
namespace {

using namespace attention::cuda;  // NOLINT: the device's words

class HeapAllocator final : public MemoryAllocator {
 public:
  void* Allocate(std::size_t bytes) override {
    void* memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
    if (memory != nullptr) std::memset(memory, 0xff, bytes);
    return memory;
  }
  void Free(void* memory, std::size_t) override { std::free(memory); }
};

class SimtDevice final : public Device {
 public:
  SimtDevice(std::uint32_t seed, bool has_wgmma)
      : seed_(seed),
        properties_{.name = "host",
                    .architecture = has_wgmma ? "simt_90" : "simt",
                    .num_multiprocessors = 3,
                    .has_wgmma = has_wgmma} {}

  const DeviceProperties& properties() const override { return properties_; }
  MemoryAllocator& memory() override { return allocator_; }
  MemoryAllocator& host_memory() override { return allocator_; }

  absl::Status CopyToDevice(void* device, const void* host, std::size_t bytes) override {
    if (bytes > 0) std::memcpy(device, host, bytes);
    return absl::OkStatus();
  }
  absl::Status CopyToHost(void* host, const void* device, std::size_t bytes) override {
    return CopyToDevice(host, device, bytes);
  }
  absl::Status Zero(void* device, std::size_t bytes) override {
    std::memset(device, 0, bytes);
    return absl::OkStatus();
  }

  absl::Status Launch(const KernelId& id, int num_blocks,
                      const AttendArguments& arguments) override {
    const auto run = [&](auto* kernel) { Run(kernel, num_blocks, arguments); };
    bool is_known = false;
    if (id.family == KernelFamily::kAttendFloat) {
      is_known = DispatchHeadDim<AttendFloat>(id.head_dim, run);
    } else if (id.family == KernelFamily::kAttendWgmma) {
      is_known = id.dtype == DType::kFloat16 ? DispatchWgmma<DType::kFloat16>(id.head_dim, run)
                                             : DispatchWgmma<DType::kBFloat16>(id.head_dim, run);
    } else if (id.kv_dtype == DType::kInt8) {
      is_known = DispatchMma<DType::kBFloat16, DType::kInt8>(id.head_dim, id.tile_rows, run);
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

  absl::Status Synchronize() override { return absl::OkStatus(); }
  DeviceCeilings MeasureCeilings() override { return {}; }
  std::unique_ptr<DeviceMeter> MakeMeter() override { return MakeSimtMeter(); }

 private:
  template <typename Kernel>
  void Run(Kernel*, int num_blocks, const typename Kernel::Arguments& arguments) {
    RunBlocks(num_blocks, Kernel::kThreads, Kernel::kSharedBytes, seed_++,
              [&](char* shared) { Kernel::Run(arguments, shared); });
  }

  static absl::Status Known(const KernelId& id, bool is_known) {
    if (is_known) return absl::OkStatus();
    return absl::InternalError(absl::StrCat("no kernel is named ", KernelIdName(id)));
  }

  HeapAllocator allocator_;
  std::uint32_t seed_;
  const DeviceProperties properties_;
};

}  // namespace

std::shared_ptr<cuda::Device> MakeSimtDevice(std::uint32_t seed, bool has_wgmma) {
  return std::make_shared<SimtDevice>(seed, has_wgmma);
}

}  // namespace attention::simt
