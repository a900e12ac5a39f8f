#include "kernels/api/attention_params.h"

#include <algorithm>
#include <cmath>

namespace attention {

float DefaultSoftmaxScale(int head_dim_qk) {
  return static_cast<float>(1.0 / std::sqrt(static_cast<double>(head_dim_qk)));
}

VisibleKeys VisibleKeysOf(const AttentionTask& task, std::int64_t position) {
  const AttentionParams& params = task.params;
  VisibleKeys keys{task.kv_begin, task.kv_len, task.kv_begin};
  if (params.is_causal) keys.end = std::min(keys.end, position + 1);
  if (params.window_right >= 0) keys.end = std::min(keys.end, position + params.window_right + 1);
  keys.end = std::max(keys.end, task.kv_begin);
  if (params.window_left >= 0) keys.begin = std::max(keys.begin, position - params.window_left);
  keys.begin = std::min(keys.begin, keys.end);
  keys.sink_end = std::max(task.kv_begin, std::min(params.sink_tokens, keys.begin));
  return keys;
}

}  // namespace attention
