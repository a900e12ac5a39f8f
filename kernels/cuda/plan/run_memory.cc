#include "kernels/cuda/plan/run_memory.h"

#include <algorithm>

namespace attention::cuda {
namespace {

absl::Status Make(Device& device, std::unique_ptr<Event>& event) {
  if (event != nullptr) return absl::OkStatus();
  auto made = device.MakeEvent();
  if (!made.ok()) return made.status();
  event = *std::move(made);
  return absl::OkStatus();
}

}  // namespace

absl::Status RunMemory::ReserveEvents(std::size_t num_parts) {
  if (absl::Status status = Make(*device, done); !status.ok()) return status;
  if (parts.size() < num_parts) parts.resize(num_parts);
  for (std::size_t i = 0; i < num_parts; ++i) {
    for (std::unique_ptr<Event>* event :
         {&parts[i].uploaded, &parts[i].computed, &parts[i].downloaded}) {
      if (absl::Status status = Make(*device, *event); !status.ok()) return status;
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<RunMemory>> RunMemoryPool::Lease() {
  auto chosen = std::find_if(idle_.begin(), idle_.end(),
                             [](const auto& memory) { return !memory->is_in_flight; });
  if (chosen == idle_.end()) {
    if (idle_.size() < kMaxIdle) return std::make_unique<RunMemory>(device_);
    chosen = idle_.begin();
    if (absl::Status status = device_->Await(*(*chosen)->done); !status.ok()) return status;
    (*chosen)->is_in_flight = false;
  }
  std::unique_ptr<RunMemory> memory = std::move(*chosen);
  idle_.erase(chosen);
  return memory;
}

void RunMemoryPool::Retire(std::unique_ptr<RunMemory> memory) {
  if (memory != nullptr && idle_.size() < kMaxIdle) idle_.push_back(std::move(memory));
}

}  // namespace attention::cuda
