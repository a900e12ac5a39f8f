// The work of requests: what the scheduler budgets by and what tenants pay.
#pragma once

#include <cstddef>
#include <cstdint>
#include <set>

#include "absl/time/time.h"
#include "kernels/api/paged_kv_view.h"
#include "kernels/api/projection.h"
#include "kernels/api/work_estimate.h"
#include "server/domain/attention_request.h"

namespace attention::server {

// The work of a step whose layer holds at most `length` tokens before it. A position beyond counts
// as the length: it is an error when the step runs, and no reason to wait for it until then.
WorkEstimate EstimateStep(const SessionStep& step, const KvGeometry& geometry, std::int64_t length);

// The work of `rows` rows of attention weights.
WorkEstimate EstimateWeights(const AttentionTask& task, std::int64_t rows);

// The projections of one request.
class ProjectionEstimate {
 public:
  void Add(const ProjectionTask& task);
  const WorkEstimate& work() const { return work_; }

 private:
  WorkEstimate work_;
  std::set<const PackedProjection*> counted_;
};

// The costs of a request's parts, its sequences or its steps, beside arithmetic and tensors.
struct PartCosts {
  absl::Duration work;
  std::int64_t bytes = 0;
};
inline constexpr PartCosts kSequenceCosts{absl::Nanoseconds(500), 1024};
// 16,384 steps of one row in a message left 125 MiB resident: their messages, buffers and answers.
inline constexpr PartCosts kStepCosts{absl::Microseconds(1), 8192};

// Turns estimates into time on one kind of device. Immutable.
class WorkModel {
 public:
  explicit WorkModel(const DeviceCeilings& ceilings) : ceilings_(ceilings) {}

  // Sets the request's work, flops and bytes: `tensor_bytes` of tensors and results, and those of
  // its parts.
  void Charge(const WorkEstimate& work, std::int64_t tensor_bytes, std::size_t num_parts,
              const PartCosts& part, AttentionRequest* request) const;
  // The work of one part.
  absl::Duration PartWork(const WorkEstimate& work, const PartCosts& part) const;
  // The least time that the device could need.
  double Roofline(const WorkEstimate& work) const { return RooflineSeconds(work, ceilings_); }

 private:
  const DeviceCeilings ceilings_;
};

}  // namespace attention::server
