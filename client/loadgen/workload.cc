#include "client/loadgen/workload.h"

#include <algorithm>
#include <utility>

#include "client/loadgen/attend_workload.h"
#include "client/loadgen/mixed_workload.h"
#include "client/loadgen/session_workload.h"

namespace attention::loadgen {

std::int64_t LargestTensor(const Options& options) {
  if (options.workload == WorkloadKind::kMixed) {
    return std::max({LargestTensor(MixedWorkload::OptionsOf(options, WorkloadKind::kAttend)),
                     LargestTensor(MixedWorkload::OptionsOf(options, WorkloadKind::kPrefill)),
                     LargestTensor(MixedWorkload::OptionsOf(options, WorkloadKind::kDecode))});
  }
  const ShapeOptions& shape = options.shape;
  const AttentionCase request = {.shape = shape};
  std::int64_t kv_rows = shape.q_len;
  if (options.workload == WorkloadKind::kAttend) kv_rows = shape.kv_len;
  if (options.workload == WorkloadKind::kDecode) kv_rows = ContextChunkRows(request);
  return std::max(
      {shape.q_len * request.q_row(), kv_rows * request.k_row(), kv_rows * request.v_row()});
}

std::unique_ptr<Workload> MakeWorkload(const Options& options, const TensorPool& pool,
                                       std::shared_ptr<client::Client> client) {
  if (options.workload == WorkloadKind::kAttend) {
    return std::make_unique<AttendWorkload>(options, pool, std::move(client));
  }
  if (options.workload == WorkloadKind::kMixed) {
    return std::make_unique<MixedWorkload>(options, pool, client);
  }
  return std::make_unique<SessionWorkload>(options, pool, std::move(client));
}

}  // namespace attention::loadgen
