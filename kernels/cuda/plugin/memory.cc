#include "kernels/cuda/plugin/memory.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdlib>

namespace attention::cuda {
namespace {

// Whole pages of the system: no two blocks share one that would be pinned twice.
constexpr std::size_t kPageBytes = 4096;

// Calls that are told of by their result leave no error behind for the next launch to find.
bool IsDone(cudaError_t error) {
  if (error != cudaSuccess) cudaGetLastError();
  return error == cudaSuccess;
}

}  // namespace

void* DeviceAllocator::Allocate(std::size_t bytes) {
  void* memory = nullptr;
  const std::size_t size = std::max<std::size_t>(bytes, 1);
  context_->IfAlive([&] {
    cudaSetDevice(ordinal_);
    if (!IsDone(is_managed_ ? cudaMallocManaged(&memory, size) : cudaMalloc(&memory, size))) {
      memory = nullptr;
    }
  });
  return memory;
}

void DeviceAllocator::Free(void* memory, std::size_t) {
  context_->IfAlive([&] { IsDone(cudaFree(memory)); });
}

// Waits for the end: kernels of other streams write there next.
void DeviceAllocator::Zero(void* memory, std::size_t bytes) {
  context_->IfAlive([&] {
    cudaSetDevice(ordinal_);
    if (IsDone(cudaMemset(memory, 0, bytes))) IsDone(cudaStreamSynchronize(nullptr));
  });
}

std::size_t DeviceAllocator::free_bytes() const {
  std::size_t free = 0, total = 0;
  context_->IfAlive([&] {
    cudaSetDevice(ordinal_);
    if (!IsDone(cudaMemGetInfo(&free, &total))) free = 0;
  });
  return free;
}

void* PinnedAllocator::Allocate(std::size_t bytes) {
  const std::size_t size =
      (std::max<std::size_t>(bytes, 1) + kPageBytes - 1) / kPageBytes * kPageBytes;
  void* memory = std::aligned_alloc(kPageBytes, size);
  if (memory == nullptr) return nullptr;
  context_->IfAlive([&] {
    cudaSetDevice(ordinal_);
    IsDone(cudaHostRegister(memory, size, cudaHostRegisterPortable));
  });
  return memory;
}

// It may be of a context before this one, which does not know it.
void PinnedAllocator::Free(void* memory, std::size_t) {
  context_->IfAlive([&] {
    cudaSetDevice(ordinal_);
    IsDone(cudaHostUnregister(memory));
  });
  std::free(memory);
}

}  // namespace attention::cuda
