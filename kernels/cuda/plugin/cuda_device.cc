#include "kernels/cuda/plugin/cuda_device.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <functional>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/device/device_context.h"
#include "kernels/cuda/kernels/generic/launches.h"
#include "kernels/cuda/kernels/generic/meter.h"
#include "kernels/cuda/kernels/sm90/launches.h"
#include "kernels/cuda/plugin/cuda_matmuls.h"
#include "kernels/cuda/plugin/cuda_meter.h"
#include "kernels/cuda/plugin/memory.h"
#include "kernels/cuda/plugin/status.h"

namespace attention::cuda {
namespace {

constexpr int kLeastMajor = 8;

// The driver's documentation leaves open whether a device whose context was lost answers anything
// again in this process: the reset's answer says so, and then Prove.
absl::Status ResetDevice(int ordinal) {
  cudaSetDevice(ordinal);  // fails with the error that stays; the reset is what is asked for
  const absl::Status status = ToStatus(cudaDeviceReset(), "resetting the device");
  cudaGetLastError();
  return status;
}

ContextTable& Contexts() {
  static auto* contexts = new ContextTable(ResetDevice);
  return *contexts;
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

// Machines have several of one model; ordinals depend on what the process is shown.
std::string NameOf(int ordinal, const cudaDeviceProp& properties) {
  char place[32] = "";
  const bool is_known = cudaDeviceGetPCIBusId(place, sizeof(place), ordinal) == cudaSuccess;
  cudaGetLastError();
  return absl::StrCat(properties.name, " (GPU ", ordinal, is_known ? ", PCI " : "", place, ")");
}

class CudaEvent final : public Event {
 public:
  explicit CudaEvent(std::shared_ptr<const DeviceContext> context) : context_(std::move(context)) {}
  ~CudaEvent() override {
    context_->IfAlive([&] {
      if (event_ != nullptr) cudaEventDestroy(event_);
    });
  }
  cudaEvent_t& get() { return event_; }
  cudaEvent_t get() const { return event_; }

 private:
  const std::shared_ptr<const DeviceContext> context_;
  cudaEvent_t event_ = nullptr;
};

class CudaDevice final : public Device {
 public:
  CudaDevice(const CudaDeviceOptions& options, const cudaDeviceProp& properties,
             std::shared_ptr<DeviceContext> context)
      : ordinal_(options.ordinal),
        context_(std::move(context)),
        properties_{.name = NameOf(ordinal_, properties),
                    .architecture = absl::StrCat("sm_", properties.major, properties.minor),
                    .num_multiprocessors = properties.multiProcessorCount,
                    .has_wgmma = properties.major == 9 && properties.minor == 0},
        memory_(ordinal_, options.has_managed_memory, context_),
        host_memory_(ordinal_, context_) {}

  ~CudaDevice() override {
    context_->IfAlive([&] {
      for (cudaStream_t stream : streams_) {
        if (stream != nullptr) cudaStreamDestroy(stream);
      }
    });
  }

  absl::Status Open() {
    for (cudaStream_t& stream : streams_) {
      absl::Status status = Do("making a context", [&] {
        return cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
      });
      if (!status.ok()) return status;
    }
    absl::Status status = Prove();
    if (status.ok()) matmuls_ = MakeCudaMatmuls(ordinal_, context_, memory_, compute());
    return status;
  }

  const DeviceProperties& properties() const override { return properties_; }
  MemoryAllocator& memory() override { return memory_; }
  MemoryAllocator& host_memory() override { return host_memory_; }

  absl::Status CopyToDevice(Stream stream, void* device, const void* host,
                            std::size_t bytes) override {
    return Do("copying to the device", [&] {
      return cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, get(stream));
    });
  }
  absl::Status CopyToHost(Stream stream, void* host, const void* device,
                          std::size_t bytes) override {
    return Do("copying from the device", [&] {
      return cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, get(stream));
    });
  }

  absl::Status CopyOnDevice(void* to, const void* from, std::size_t bytes) override {
    return Do("copying on the device", [&] {
      return cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, compute());
    });
  }

  bool IsPinned(const void* host) const override {
    bool is_pinned = false;
    context_->IfAlive([&] {
      cudaPointerAttributes attributes;
      cudaSetDevice(ordinal_);
      const bool is_known = cudaPointerGetAttributes(&attributes, host) == cudaSuccess;
      is_pinned = is_known && attributes.type == cudaMemoryTypeHost;
      if (!is_known) cudaGetLastError();
    });
    return is_pinned;
  }

  absl::Status Launch(const KernelId& id, int num_blocks,
                      const AttendArguments& arguments) override {
    return DoLaunch(id, [&](cudaError_t* error) {
      if (id.family == KernelFamily::kAttendFloat) {
        return LaunchAttendFloat(id.head_dim, num_blocks, arguments, compute(), error);
      }
      if (id.family == KernelFamily::kRowTotals) {
        return LaunchRowTotals(id.head_dim, num_blocks, arguments, compute(), error);
      }
      if (id.family == KernelFamily::kAttendWgmma) {
        return LaunchWgmma(id.dtype, id.head_dim, num_blocks, arguments, compute(), error);
      }
      if (id.family == KernelFamily::kAttendDecodeBulk) {
        return LaunchDecodeBulk(id.dtype, id.kv_dtype, id.head_dim, num_blocks, arguments,
                                compute(), error);
      }
      const auto launch = id.kv_dtype == DType::kInt8         ? LaunchMmaInt8
                          : id.kv_dtype == DType::kFloat8E4M3 ? LaunchMmaFloat8
                          : id.dtype == DType::kFloat16       ? LaunchMmaFloat16
                                                              : LaunchMmaBFloat16;
      return launch(id.head_dim, id.tile_rows, num_blocks, arguments, compute(), error);
    });
  }
  absl::Status Launch(const KernelId& id, int num_blocks,
                      const ProbeArguments& arguments) override {
    return DoLaunch(id, [&](cudaError_t* error) {
      return LaunchProbe(id.head_dim, num_blocks, arguments, compute(), error);
    });
  }
  absl::Status Launch(const KernelId& id, int num_blocks,
                      const AppendArguments& arguments) override {
    return DoLaunch(id, [&](cudaError_t* error) {
      *error = LaunchAppend(num_blocks, arguments, compute());
      return true;
    });
  }

  absl::StatusOr<MatmulDevice*> matmuls() override {
    if (matmuls_.ok()) return matmuls_->get();
    return matmuls_.status();
  }

  absl::StatusOr<std::unique_ptr<Event>> MakeEvent() override {
    auto event = std::make_unique<CudaEvent>(context_);
    absl::Status status = Do("making an event", [&] {
      return cudaEventCreateWithFlags(&event->get(), cudaEventDisableTiming);
    });
    if (!status.ok()) return status;
    return event;
  }
  absl::Status Record(Event& event, Stream stream) override {
    return Do("recording an event", [&] { return cudaEventRecord(Of(event), get(stream)); });
  }
  absl::Status Wait(Stream stream, const Event& event) override {
    return Do("ordering streams", [&] { return cudaStreamWaitEvent(get(stream), Of(event)); });
  }
  absl::Status Await(const Event& event) override {
    return Do("computing", [&] { return cudaEventSynchronize(Of(event)); });
  }
  absl::Status Synchronize() override {
    for (cudaStream_t stream : streams_) {
      absl::Status status = Do("computing", [&] { return cudaStreamSynchronize(stream); });
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  }

  void Abandon() override { context_->Lose(); }

  DeviceCeilings MeasureCeilings() override;
  std::unique_ptr<DeviceMeter> MakeMeter() override {
    return MakeCudaMeter(ordinal_, properties_.has_wgmma, compute());
  }

 private:
  static cudaEvent_t Of(const Event& event) { return static_cast<const CudaEvent&>(event).get(); }
  cudaStream_t compute() const { return get(Stream::kCompute); }
  cudaStream_t get(Stream stream) const { return streams_[static_cast<int>(stream)]; }

  // Makes a call in this device's context, unless that is lost.
  template <typename Call>
  absl::Status Do(const char* what, Call call) {
    cudaError_t error = cudaSuccess;
    const bool is_alive = context_->IfAlive([&] {
      cudaSetDevice(ordinal_);
      error = call();
    });
    if (!is_alive) return absl::InternalError(absl::StrCat(what, ": the context was lost before"));
    return Told(error, what);
  }

  template <typename Call>
  absl::Status DoLaunch(const KernelId& id, Call launch) {
    bool is_known = false;
    absl::Status status = Do(KernelIdName(id).c_str(), [&] {
      cudaError_t error = cudaSuccess;
      is_known = launch(&error);
      return error;
    });
    if (!status.ok() || is_known) return status;
    return absl::InternalError(absl::StrCat("no kernel is ", KernelIdName(id)));
  }

  // An error's status; one that stays loses the context.
  absl::Status Told(cudaError_t error, const char* what) {
    if (IsSticky(error)) context_->Lose();
    return ToStatus(error, what);
  }

  // OK when the context allocates, copies, computes and waits.
  absl::Status Prove();

  // Seconds of the second of two launches; 0 when it fails.
  double TimeOf(const std::function<cudaError_t()>& launch) const;

  const int ordinal_;
  const std::shared_ptr<DeviceContext> context_;
  const DeviceProperties properties_;
  DeviceAllocator memory_;
  PinnedAllocator host_memory_;
  cudaStream_t streams_[kNumStreams] = {};
  absl::StatusOr<std::unique_ptr<MatmulDevice>> matmuls_ = absl::UnavailableError("not opened");
};

absl::Status CudaDevice::Prove() {
  constexpr std::size_t kBytes = 256;
  std::byte written[kBytes], read[kBytes];
  std::fill_n(written, kBytes, std::byte{0x5a});
  std::fill_n(read, kBytes, std::byte{0});
  void* memory = memory_.Allocate(2 * kBytes);
  if (memory == nullptr) return absl::ResourceExhaustedError("the device has no memory left");
  auto* out = reinterpret_cast<float*>(static_cast<std::byte*>(memory) + kBytes);
  absl::Status status = CopyToDevice(Stream::kCompute, memory, written, kBytes);
  if (status.ok()) {
    status = Do("a first kernel", [&] { return LaunchRead(memory, kBytes, 1, out, compute()); });
  }
  if (status.ok()) status = CopyToHost(Stream::kCompute, read, memory, kBytes);
  if (status.ok()) status = Synchronize();
  memory_.Free(memory, 2 * kBytes);
  if (!status.ok()) return status;
  if (std::equal(written, written + kBytes, read)) return status;
  return absl::UnavailableError("the device does not keep what is copied to it");
}

double CudaDevice::TimeOf(const std::function<cudaError_t()>& launch) const {
  cudaEvent_t begin = nullptr, end = nullptr;
  float milliseconds = 0;
  bool is_ok = cudaEventCreate(&begin) == cudaSuccess && cudaEventCreate(&end) == cudaSuccess &&
               launch() == cudaSuccess;
  is_ok = is_ok && cudaEventRecord(begin, compute()) == cudaSuccess && launch() == cudaSuccess &&
          cudaEventRecord(end, compute()) == cudaSuccess &&
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
  cudaMemsetAsync(memory, 0, kReadBytes + 256, compute());
  ceilings.bytes_per_second = rate(
      kReadBytes, TimeOf([&] { return LaunchRead(memory, kReadBytes, blocks, out, compute()); }));
  const double warps = 8.0 * blocks;
  // The warpgroups' instructions, where there are any, take the place of these below.
  ceilings.bf16_flops_per_second =
      rate(warps * kRounds * 8 * 2 * 16 * 8 * 16,
           TimeOf([&] { return LaunchMmaPeak(blocks, kRounds, out, compute()); }));
  ceilings.flops_per_second =
      rate(warps * 32 * kRounds * 8 * 2,
           TimeOf([&] { return LaunchFmaPeak(blocks, kRounds, out, compute()); }));
  memory_.Free(memory, kReadBytes + 256);
  if (properties_.has_wgmma) {
    ceilings.bf16_flops_per_second = MakeMeter()->MatrixFlops().value_or(0);
  }
  return ceilings;
}

}  // namespace

absl::StatusOr<std::shared_ptr<Device>> MakeCudaDevice(const CudaDeviceOptions& options) {
  auto context = Contexts().Enter(options.ordinal);
  if (!context.ok()) return context.status();
  auto properties = PropertiesOf(options.ordinal);
  if (!properties.ok()) return properties.status();
  auto device = std::make_shared<CudaDevice>(options, *properties, *std::move(context));
  absl::Status status = device->Open();
  if (status.ok()) return std::shared_ptr<Device>(std::move(device));
  // A device that cannot be used now may be usable after a reset.
  if (status.code() != absl::StatusCode::kResourceExhausted) device->Abandon();
  return absl::UnavailableError(
      absl::StrCat("the device cannot be used: ", std::string(status.message())));
}

absl::StatusOr<std::string> CudaDeviceName(int ordinal) {
  auto properties = PropertiesOf(ordinal);
  if (!properties.ok()) return properties.status();
  return NameOf(ordinal, *properties);
}

int CudaDeviceCount() {
  int count = 0;
  const bool is_known = cudaGetDeviceCount(&count) == cudaSuccess;
  cudaGetLastError();
  return is_known ? count : 0;
}

}  // namespace attention::cuda
