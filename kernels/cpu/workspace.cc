#include "kernels/cpu/workspace.h"

#include <algorithm>
#include <utility>

namespace attention::cpu {

void Workspace::Reset() {
  phase = RunPhase::kPack;
  num_claimed.store(0, std::memory_order_relaxed);
  for (ThreadState& thread : threads) {
    thread.claimed = -1;
    thread.is_begun = thread.is_next_claimed = false;
    thread.scratch->progress = {};
    thread.scratch->flops = 0;
  }
}

WorkspaceLease WorkspacePool::Take(std::size_t arena_bytes) {
  std::unique_ptr<Workspace> taken;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto is_better = [&](const auto& a, const auto& b) {
      const bool a_fits = a->arena.size() >= arena_bytes, b_fits = b->arena.size() >= arena_bytes;
      if (a_fits != b_fits) return a_fits;
      return a_fits ? a->arena.size() < b->arena.size() : a->arena.size() > b->arena.size();
    };
    const auto best = std::min_element(free_.begin(), free_.end(), is_better);
    if (best != free_.end()) {
      taken = std::move(*best);
      free_.erase(best);
    }
  }
  if (taken == nullptr) {
    taken = std::make_unique<Workspace>();
    taken->threads.resize(num_threads_);
  }
  taken->Reset();
  return WorkspaceLease(taken.release(), ReturnWorkspace{shared_from_this()});
}

void ReturnWorkspace::operator()(Workspace* workspace) const {
  std::lock_guard<std::mutex> lock(pool->mutex_);
  pool->free_.emplace_back(workspace);
}

}  // namespace attention::cpu
