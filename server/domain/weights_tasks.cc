#include "server/domain/weights_tasks.h"

#include <algorithm>
#include <cstdint>

namespace attention::server {
namespace {

// 4 MiB: about a millisecond of computing them.
constexpr std::int64_t kBlockElements = std::int64_t{1} << 20;

}  // namespace

void AddWeightsTasks(const AttentionTask& task, float* weights, std::vector<WeightsTask>& tasks) {
  const std::int64_t row_elements = task.params.num_q_heads * task.kv_len;
  const std::int64_t rows =
      std::max<std::int64_t>(1, kBlockElements / std::max<std::int64_t>(1, row_elements));
  for (std::int64_t begin = 0; begin < task.q_len; begin += rows) {
    tasks.push_back(
        {task, begin, std::min(task.q_len, begin + rows), weights + begin * row_elements});
  }
}

}  // namespace attention::server
