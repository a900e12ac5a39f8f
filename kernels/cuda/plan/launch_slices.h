// Cuts the items of a plan into the slices of its launches.
#pragma once

#include <span>

#include "kernels/cuda/plan/plan.h"

namespace attention::cuda {

// Part by part, slices of one kernel each. `costs` are those of plan.items, among which the plan's
// flops are divided; no slice has more than `launch_flops` unless a single item has.
void AddSlices(CudaPlan& plan, std::span<const double> costs, double launch_flops);

}  // namespace attention::cuda
