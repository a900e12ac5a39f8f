#include "tests/simt/faulty_gpu.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "tests/simt/simt_device.h"

namespace attention::simt {
namespace {

constexpr std::byte kPoison{0xee};

}  // namespace

ContextMemory::~ContextMemory() {
  for (const auto& [block, bytes] : blocks_) std::free(const_cast<std::byte*>(block));
}

void* ContextMemory::Allocate(std::size_t bytes) {
  const std::size_t size = (std::max<std::size_t>(bytes, 1) + 255) / 256 * 256;
  auto* block = static_cast<std::byte*>(std::aligned_alloc(256, size));
  std::fill_n(block, size, std::byte{0xff});
  const std::lock_guard lock(mutex_);
  blocks_[block] = size;
  return block;
}

bool ContextMemory::Free(void* memory) {
  const std::lock_guard lock(mutex_);
  if (blocks_.erase(static_cast<std::byte*>(memory)) == 0) return false;
  std::free(memory);
  return true;
}

bool ContextMemory::Holds(const void* memory, std::size_t bytes) const {
  const auto* first = static_cast<const std::byte*>(memory);
  const std::lock_guard lock(mutex_);
  auto block = blocks_.upper_bound(first);
  if (block == blocks_.begin()) return false;
  --block;
  return first + bytes <= block->first + block->second;
}

void ContextMemory::Poison() {
  const std::lock_guard lock(mutex_);
  for (const auto& [block, bytes] : blocks_) {
    std::fill_n(const_cast<std::byte*>(block), bytes, kPoison);
  }
}

bool ContextMemory::IsUntouched() const {
  const std::lock_guard lock(mutex_);
  return std::all_of(blocks_.begin(), blocks_.end(), [](const auto& block) {
    return std::all_of(block.first, block.first + block.second,
                       [](std::byte byte) { return byte == kPoison; });
  });
}

std::size_t ContextMemory::num_blocks() const {
  const std::lock_guard lock(mutex_);
  return blocks_.size();
}

// A simulated device in one context of the GPU.
class FaultyDevice final : public cuda::Device {
 public:
  FaultyDevice(FaultyGpu& gpu, std::shared_ptr<cuda::DeviceContext> context)
      : gpu_(gpu),
        context_(std::move(context)),
        properties_(real_->properties()),
        memory_(gpu, context_) {
    properties_.name = gpu.name_;
  }

  const cuda::DeviceProperties& properties() const override { return properties_; }
  MemoryAllocator& memory() override { return memory_; }
  MemoryAllocator& host_memory() override { return real_->host_memory(); }

  absl::Status CopyToDevice(cuda::Stream stream, void* device, const void* host,
                            std::size_t bytes) override {
    return Do(device, bytes, [&] { return real_->CopyToDevice(stream, device, host, bytes); });
  }
  absl::Status CopyToHost(cuda::Stream stream, void* host, const void* device,
                          std::size_t bytes) override {
    return Do(device, bytes, [&] { return real_->CopyToHost(stream, host, device, bytes); });
  }
  absl::Status CopyOnDevice(void* to, const void* from, std::size_t bytes) override {
    return Do(to, bytes, [&] { return real_->CopyOnDevice(to, from, bytes); });
  }
  bool IsPinned(const void* host) const override { return real_->IsPinned(host); }

  absl::Status Launch(const cuda::KernelId& id, int num_blocks,
                      const cuda::AttendArguments& arguments) override {
    return LaunchAny(id, num_blocks, arguments);
  }
  absl::Status Launch(const cuda::KernelId& id, int num_blocks,
                      const cuda::ProbeArguments& arguments) override {
    return LaunchAny(id, num_blocks, arguments);
  }
  absl::Status Launch(const cuda::KernelId& id, int num_blocks,
                      const cuda::AppendArguments& arguments) override {
    return LaunchAny(id, num_blocks, arguments);
  }
  absl::StatusOr<std::unique_ptr<cuda::Event>> MakeEvent() override { return real_->MakeEvent(); }
  absl::Status Record(cuda::Event& event, cuda::Stream stream) override {
    return Do(nullptr, 0, [&] { return real_->Record(event, stream); });
  }
  absl::Status Wait(cuda::Stream stream, const cuda::Event& event) override {
    return Do(nullptr, 0, [&] { return real_->Wait(stream, event); });
  }
  absl::Status Await(const cuda::Event& event) override {
    return Do(nullptr, 0, [&] { return real_->Await(event); });
  }
  void Abandon() override { context_->Lose(); }
  absl::Status Synchronize() override {
    return Do(nullptr, 0, [&] { return real_->Synchronize(); });
  }
  absl::StatusOr<cuda::MatmulDevice*> matmuls() override {
    return absl::UnavailableError("no products");
  }
  DeviceCeilings MeasureCeilings() override { return {}; }

 private:
  class Memory final : public MemoryAllocator {
   public:
    Memory(FaultyGpu& gpu, std::shared_ptr<cuda::DeviceContext> context)
        : gpu_(gpu), context_(std::move(context)) {}
    void* Allocate(std::size_t bytes) override {
      void* memory = nullptr;
      context_->IfAlive([&] { memory = gpu_.memory_->Allocate(bytes); });
      return memory;
    }
    void Free(void* memory, std::size_t) override {
      context_->IfAlive([&] {
        if (!gpu_.memory_->Free(memory)) gpu_.Report("freed memory that is not of this context");
      });
    }
    void Zero(void* memory, std::size_t bytes) override {
      context_->IfAlive([&] { std::memset(memory, 0, bytes); });
    }
    bool outlives_backend() const override { return false; }
    std::size_t free_bytes() const override { return std::size_t{64} << 20; }

   private:
    FaultyGpu& gpu_;
    const std::shared_ptr<cuda::DeviceContext> context_;
  };

  template <typename Call>
  absl::Status Do(const void* memory, std::size_t bytes, Call call) {
    if (context_->is_lost()) return absl::InternalError("the context was lost before");
    if (!gpu_.fault_.ok()) {
      context_->Lose();
      return gpu_.fault_;
    }
    if (bytes > 0 && !gpu_.memory_->Holds(memory, bytes)) {
      gpu_.Report("copied memory that is not of this context");
    }
    return call();
  }

  template <typename Arguments>
  absl::Status LaunchAny(const cuda::KernelId& id, int num_blocks, const Arguments& arguments) {
    return Do(nullptr, 0, [&] {
      // A fault shows with a later call, as kernels run behind the host's back.
      if (gpu_.launches_to_fault_ >= 0 && gpu_.launches_to_fault_-- == 0) {
        gpu_.fault_ = absl::InternalError("illegal address");
        return absl::OkStatus();
      }
      return real_->Launch(id, num_blocks, arguments);
    });
  }

  FaultyGpu& gpu_;
  const std::shared_ptr<cuda::DeviceContext> context_;
  // Done at once: nothing is left to be done when a context is lost.
  const std::shared_ptr<cuda::Device> real_ =
      MakeSimtDevice(/*seed=*/1, /*has_wgmma=*/false, kAllEager);
  cuda::DeviceProperties properties_;
  Memory memory_;
};

absl::StatusOr<std::shared_ptr<cuda::Device>> FaultyGpu::MakeDevice() {
  auto context = contexts_.Enter(0);
  if (!context.ok()) return context.status();
  return std::make_shared<FaultyDevice>(*this, *std::move(context));
}

absl::Status FaultyGpu::Reset() {
  if (!reset_status_.ok()) return reset_status_;
  ++num_resets_;
  fault_ = absl::OkStatus();
  memory_->Poison();
  lost_memories_.push_back(std::exchange(memory_, std::make_shared<ContextMemory>()));
  return absl::OkStatus();
}

void FaultyGpu::Report(std::string misuse) {
  const std::lock_guard lock(mutex_);
  misuse_.push_back(std::move(misuse));
}

std::vector<std::string> FaultyGpu::Misuse() const {
  const std::lock_guard lock(mutex_);
  std::vector<std::string> misuse = misuse_;
  for (const auto& memory : lost_memories_) {
    if (!memory->IsUntouched()) misuse.emplace_back("wrote to memory of a lost context");
  }
  return misuse;
}

}  // namespace attention::simt
