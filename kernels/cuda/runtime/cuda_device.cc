#include "kernels/cuda/runtime/cuda_device.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <functional>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/runtime/cuda_meter.h"
#include "kernels/cuda/runtime/kernels.h"

namespace attention::cuda {
namespace {

constexpr int kLeastMajor = 8;

// Errors after which the context answers nothing else (CUDA runtime: "the process must be
// terminated and relaunched").
bool IsLost(cudaError_t error) {
  switch (error) {
    case cudaErrorIllegalAddress:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
    case cudaErrorLaunchTimeout:
    case cudaErrorHardwareStackError:
    case cudaErrorECCUncorrectable:
    case cudaErrorAssert:
      return true;
    default:
      return false;
  }
}

absl::Status ToStatus(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return absl::OkStatus();
  const std::string message =
      absl::StrCat(what, ": ", cudaGetErrorName(error), ": ", cudaGetErrorString(error));
  if (error == cudaErrorMemoryAllocation) return absl::ResourceExhaustedError(message);
  if (IsLost(error)) {
    return absl::InternalError(
        absl::StrCat(message,
                     "; the device's context is lost, and with it every cache in its "
                     "memory: the server must be started again"));
  }
  if (error == cudaErrorInsufficientDriver || error == cudaErrorNoDevice ||
      error == cudaErrorDevicesUnavailable || error == cudaErrorInitializationError) {
    return absl::UnavailableError(message);
  }
  return absl::InternalError(message);
}

absl::Status CheckOrdinal(int ordinal) {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaErrorInsufficientDriver) {
    int driver = 0;
    cudaDriverGetVersion(&driver);
    const std::string found =
        driver == 0 ? "none" : absl::StrCat(driver / 1000, ".", driver % 1000 / 10);
    return absl::UnavailableError(absl::StrCat(
        "the NVIDIA driver is missing or too old: it supports CUDA ", found, ", expected ",
        CUDART_VERSION / 1000, ".", CUDART_VERSION % 1000 / 10, " or newer"));
  }
  if (absl::Status status = ToStatus(error, "counting devices"); !status.ok()) return status;
  if (ordinal >= 0 && ordinal < count) return absl::OkStatus();
  return absl::UnavailableError(
      absl::StrCat("device is ", ordinal, ", expected less than the ", count, " that are there"));
}

absl::StatusOr<cudaDeviceProp> PropertiesOf(int ordinal) {
  if (absl::Status status = CheckOrdinal(ordinal); !status.ok()) return status;
  cudaDeviceProp properties;
  const cudaError_t error = cudaGetDeviceProperties(&properties, ordinal);
  if (absl::Status status = ToStatus(error, "reading the device's properties"); !status.ok()) {
    return status;
  }
  if (properties.major >= kLeastMajor) return properties;
  return absl::UnavailableError(absl::StrCat(properties.name, " has compute capability ",
                                             properties.major, ".", properties.minor, ", expected ",
                                             kLeastMajor, ".0 or newer"));
}

// On any thread; leaves no error behind.
class DeviceAllocator final : public MemoryAllocator {
 public:
  DeviceAllocator(int ordinal, bool is_managed) : ordinal_(ordinal), is_managed_(is_managed) {}

  void* Allocate(std::size_t bytes) override {
    void* memory = nullptr;
    cudaSetDevice(ordinal_);
    const std::size_t size = std::max<std::size_t>(bytes, 1);
    const cudaError_t error =
        is_managed_ ? cudaMallocManaged(&memory, size) : cudaMalloc(&memory, size);
    if (error == cudaSuccess) return memory;
    cudaGetLastError();
    return nullptr;
  }
  void Free(void* memory, std::size_t) override { cudaFree(memory); }
  bool outlives_backend() const override { return false; }

  std::size_t free_bytes() const override {
    std::size_t free = 0, total = 0;
    cudaSetDevice(ordinal_);
    return cudaMemGetInfo(&free, &total) == cudaSuccess ? free : 0;
  }

 private:
  const int ordinal_;
  const bool is_managed_;
};

class PinnedAllocator final : public MemoryAllocator {
 public:
  explicit PinnedAllocator(int ordinal) : ordinal_(ordinal) {}

  void* Allocate(std::size_t bytes) override {
    void* memory = nullptr;
    cudaSetDevice(ordinal_);
    if (cudaMallocHost(&memory, std::max<std::size_t>(bytes, 1)) == cudaSuccess) return memory;
    cudaGetLastError();
    return nullptr;
  }
  void Free(void* memory, std::size_t) override { cudaFreeHost(memory); }
  bool outlives_backend() const override { return false; }

 private:
  const int ordinal_;
};

class CudaDevice final : public Device {
 public:
  CudaDevice(const CudaDeviceOptions& options, const cudaDeviceProp& properties)
      : ordinal_(options.ordinal),
        properties_{.name = properties.name,
                    .architecture = absl::StrCat("sm_", properties.major, properties.minor),
                    .num_multiprocessors = properties.multiProcessorCount,
                    .has_wgmma = properties.major == 9 && properties.minor == 0},
        memory_(ordinal_, options.has_managed_memory),
        host_memory_(ordinal_) {}

  ~CudaDevice() override {
    if (stream_ != nullptr) cudaStreamDestroy(stream_);
  }

  absl::Status Open() {
    cudaSetDevice(ordinal_);
    return ToStatus(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking),
                    "making a context on the device");
  }

  const DeviceProperties& properties() const override { return properties_; }
  MemoryAllocator& memory() override { return memory_; }
  MemoryAllocator& host_memory() override { return host_memory_; }

  absl::Status CopyToDevice(void* device, const void* host, std::size_t bytes) override {
    cudaSetDevice(ordinal_);
    return ToStatus(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, stream_),
                    "copying to the device");
  }
  absl::Status CopyToHost(void* host, const void* device, std::size_t bytes) override {
    cudaSetDevice(ordinal_);
    return ToStatus(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, stream_),
                    "copying from the device");
  }
  absl::Status Zero(void* device, std::size_t bytes) override {
    cudaSetDevice(ordinal_);
    return ToStatus(cudaMemsetAsync(device, 0, bytes, stream_), "clearing memory of the device");
  }

  absl::Status Launch(const KernelId& id, int num_blocks,
                      const AttendArguments& arguments) override {
    cudaSetDevice(ordinal_);
    cudaError_t error = cudaSuccess;
    bool is_known = false;
    if (id.family == KernelFamily::kAttendFloat) {
      is_known = LaunchAttendFloat(id.head_dim, num_blocks, arguments, stream_, &error);
    } else if (id.family == KernelFamily::kAttendWgmma) {
      is_known = LaunchWgmma(id.dtype, id.head_dim, num_blocks, arguments, stream_, &error);
    } else {
      const auto launch = id.kv_dtype == DType::kInt8   ? LaunchMmaInt8
                          : id.dtype == DType::kFloat16 ? LaunchMmaFloat16
                                                        : LaunchMmaBFloat16;
      is_known = launch(id.head_dim, id.tile_rows, num_blocks, arguments, stream_, &error);
    }
    return Launched(id, is_known, error);
  }
  absl::Status Launch(const KernelId& id, int num_blocks,
                      const ProbeArguments& arguments) override {
    cudaSetDevice(ordinal_);
    cudaError_t error = cudaSuccess;
    const bool is_known = LaunchProbe(id.head_dim, num_blocks, arguments, stream_, &error);
    return Launched(id, is_known, error);
  }
  absl::Status Launch(const KernelId& id, int num_blocks,
                      const AppendArguments& arguments) override {
    cudaSetDevice(ordinal_);
    return Launched(id, true, LaunchAppend(num_blocks, arguments, stream_));
  }

  absl::Status Synchronize() override {
    cudaSetDevice(ordinal_);
    return ToStatus(cudaStreamSynchronize(stream_), "computing");
  }

  DeviceCeilings MeasureCeilings() override;
  std::unique_ptr<DeviceMeter> MakeMeter() override {
    return MakeCudaMeter(ordinal_, properties_.has_wgmma, stream_);
  }

 private:
  static absl::Status Launched(const KernelId& id, bool is_known, cudaError_t error) {
    if (!is_known) return absl::InternalError(absl::StrCat("no kernel is ", KernelIdName(id)));
    return ToStatus(error, KernelIdName(id).c_str());
  }

  // Seconds of the second of two launches; 0 when it fails.
  double TimeOf(const std::function<cudaError_t()>& launch) const;

  const int ordinal_;
  const DeviceProperties properties_;
  DeviceAllocator memory_;
  PinnedAllocator host_memory_;
  cudaStream_t stream_ = nullptr;
};

double CudaDevice::TimeOf(const std::function<cudaError_t()>& launch) const {
  cudaEvent_t begin = nullptr, end = nullptr;
  float milliseconds = 0;
  bool is_ok = cudaEventCreate(&begin) == cudaSuccess && cudaEventCreate(&end) == cudaSuccess &&
               launch() == cudaSuccess;
  is_ok = is_ok && cudaEventRecord(begin, stream_) == cudaSuccess && launch() == cudaSuccess &&
          cudaEventRecord(end, stream_) == cudaSuccess &&
          cudaEventSynchronize(end) == cudaSuccess &&
          cudaEventElapsedTime(&milliseconds, begin, end) == cudaSuccess;
  if (begin != nullptr) cudaEventDestroy(begin);
  if (end != nullptr) cudaEventDestroy(end);
  return is_ok ? milliseconds / 1000.0 : 0;
}

// Much more than any L2 cache is read once; the loops of arithmetic take some tens of milliseconds.
DeviceCeilings CudaDevice::MeasureCeilings() {
  constexpr std::size_t kReadBytes = std::size_t{1} << 30;
  constexpr int kRounds = 20000;
  const int blocks = 4 * properties_.num_multiprocessors;
  DeviceCeilings ceilings;
  cudaSetDevice(ordinal_);
  auto* memory = static_cast<char*>(memory_.Allocate(kReadBytes + 256));
  if (memory == nullptr) return ceilings;
  auto* out = reinterpret_cast<float*>(memory + kReadBytes);
  const auto rate = [](double work, double seconds) { return seconds > 0 ? work / seconds : 0; };
  cudaMemsetAsync(memory, 0, kReadBytes + 256, stream_);
  ceilings.bytes_per_second = rate(
      kReadBytes, TimeOf([&] { return LaunchRead(memory, kReadBytes, blocks, out, stream_); }));
  const double warps = 8.0 * blocks;
  // The warpgroups' instructions, where there are any, take the place of these below.
  ceilings.bf16_flops_per_second =
      rate(warps * kRounds * 8 * 2 * 16 * 8 * 16,
           TimeOf([&] { return LaunchMmaPeak(blocks, kRounds, out, stream_); }));
  ceilings.flops_per_second =
      rate(warps * 32 * kRounds * 8 * 2,
           TimeOf([&] { return LaunchFmaPeak(blocks, kRounds, out, stream_); }));
  memory_.Free(memory, kReadBytes + 256);
  if (properties_.has_wgmma) {
    ceilings.bf16_flops_per_second = MakeMeter()->MatrixFlops().value_or(0);
  }
  return ceilings;
}

}  // namespace

absl::StatusOr<std::shared_ptr<Device>> MakeCudaDevice(const CudaDeviceOptions& options) {
  auto properties = PropertiesOf(options.ordinal);
  if (!properties.ok()) return properties.status();
  auto device = std::make_shared<CudaDevice>(options, *properties);
  if (absl::Status status = device->Open(); !status.ok()) return status;
  return std::shared_ptr<Device>(std::move(device));
}

absl::StatusOr<std::string> CudaDeviceName(int ordinal) {
  auto properties = PropertiesOf(ordinal);
  if (!properties.ok()) return properties.status();
  return std::string(properties->name);
}

}  // namespace attention::cuda
