#include "kernels/cuda/plan/launch_slices.h"

#include <vector>

namespace attention::cuda {
namespace {

const KernelId& KernelOf(const CudaPlan& plan, std::size_t item) {
  return plan.tasks[plan.items[item].task].kernel;
}

// The second pass counts nothing; a slice has one head dim, and no more blocks than keep it short.
template <typename Item>
void AddSecondPass(CudaPlan& plan, KernelFamily family, const std::vector<Item>& items,
                   std::size_t begin, std::size_t end, const PlanPart& part) {
  constexpr std::int64_t kProbesPerSlice = 4096;
  for (std::size_t i = begin; i < end; ++i) {
    const KernelId kernel{.family = family, .head_dim = plan.tasks[items[i].task].kernel.head_dim};
    LaunchSlice* last = plan.slices.size() == part.slices ? nullptr : &plan.slices.back();
    if (last == nullptr || last->kernel != kernel || last->num_items == kProbesPerSlice) {
      plan.slices.push_back({kernel, static_cast<std::int64_t>(i), 0, 0});
      last = &plan.slices.back();
    }
    ++last->num_items;
  }
}

void AddSlicesOfPart(CudaPlan& plan, const PlanPart& part, const PlanPart& next,
                     std::span<const double> costs, double flops_per_cost, double launch_flops) {
  if (part.append_items < next.append_items) {
    plan.slices.push_back({{KernelFamily::kAppend},
                           static_cast<std::int64_t>(part.append_items),
                           static_cast<std::int64_t>(next.append_items - part.append_items)});
  }
  for (std::size_t i = part.items; i < next.items; ++i) {
    const double flops = costs[i] * flops_per_cost;
    LaunchSlice* last = plan.slices.size() == part.slices ? nullptr : &plan.slices.back();
    if (last == nullptr || last->kernel != KernelOf(plan, i) ||
        last->flops + flops > launch_flops) {
      plan.slices.push_back({KernelOf(plan, i), static_cast<std::int64_t>(i), 0, 0});
      last = &plan.slices.back();
      if (IsPersistent(last->kernel)) last->num_taken = plan.num_counters++;
    }
    ++last->num_items;
    last->flops += flops;
  }
  AddSecondPass(plan, KernelFamily::kRowTotals, plan.totals, part.totals, next.totals, part);
  AddSecondPass(plan, KernelFamily::kProbe, plan.probes, part.probes, next.probes, part);
}

}  // namespace

void AddSlices(CudaPlan& plan, std::span<const double> costs, double launch_flops) {
  double total = 0;
  for (double cost : costs) total += cost;
  const double flops_per_cost = total > 0 ? plan.flops / total : 0;
  for (std::size_t i = 0; i < plan.num_parts(); ++i) {
    plan.parts[i].slices = plan.slices.size();
    AddSlicesOfPart(plan, plan.parts[i], plan.parts[i + 1], costs, flops_per_cost, launch_flops);
  }
  plan.parts.back().slices = plan.slices.size();
}

}  // namespace attention::cuda
