// The memory of a GPU, and of the host for copies to and from GPUs.
#pragma once

#include <cstddef>
#include <memory>
#include <utility>

#include "kernels/api/attention_backend.h"
#include "kernels/cuda/device/device_context.h"

namespace attention::cuda {

// Gone with its context: what is freed after that is left alone. Any thread.
class DeviceAllocator final : public MemoryAllocator {
 public:
  // `is_managed`: the host can read and write it too.
  DeviceAllocator(int ordinal, bool is_managed, std::shared_ptr<const DeviceContext> context)
      : ordinal_(ordinal), is_managed_(is_managed), context_(std::move(context)) {}

  void* Allocate(std::size_t bytes) override;
  void Free(void* memory, std::size_t bytes) override;
  void Zero(void* memory, std::size_t bytes) override;
  bool outlives_backend() const override { return false; }
  std::size_t free_bytes() const override;

 private:
  const int ordinal_;
  const bool is_managed_;
  const std::shared_ptr<const DeviceContext> context_;
};

// The host's own memory, made known to every context of the process. It outlives all of them, so
// that tensors of requests stay where they are when a context goes; what was pinned in a lost one,
// or cannot be pinned, is only copied more slowly. Any thread.
class PinnedAllocator final : public MemoryAllocator {
 public:
  PinnedAllocator(int ordinal, std::shared_ptr<const DeviceContext> context)
      : ordinal_(ordinal), context_(std::move(context)) {}

  void* Allocate(std::size_t bytes) override;
  void Free(void* memory, std::size_t bytes) override;

 private:
  const int ordinal_;
  const std::shared_ptr<const DeviceContext> context_;
};

}  // namespace attention::cuda
