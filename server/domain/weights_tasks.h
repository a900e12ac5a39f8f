// Attention weights cut into tasks.
#pragma once

#include <vector>

#include "kernels/api/attention_params.h"

namespace attention::server {

// Adds the weights of all queries of a task, in blocks, between which others may have a turn.
// `weights`: [q_len, num_q_heads, kv_len].
void AddWeightsTasks(const AttentionTask& task, float* weights, std::vector<WeightsTask>& tasks);

}  // namespace attention::server
