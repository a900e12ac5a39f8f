#include "client/loadgen/mixed_workload.h"

#include <utility>

namespace attention::loadgen {
namespace {

// In the order in which lanes are dealt out.
constexpr std::array<WorkloadKind, MixedWorkload::kNumKinds> kKinds = {
    WorkloadKind::kAttend, WorkloadKind::kPrefill, WorkloadKind::kDecode};

}  // namespace

Options MixedWorkload::OptionsOf(const Options& options, WorkloadKind kind) {
  Options own = options;
  own.workload = kind;
  int place = 0;
  while (kKinds[static_cast<size_t>(place)] != kind) ++place;
  // Its lanes are `place`, `place` + 3, ... below the number of all.
  own.sessions = (options.sessions - place + kNumKinds - 1) / kNumKinds;
  own.concurrency = own.max_in_flight = own.sessions;
  if (kind == WorkloadKind::kDecode) own.shape.q_len = 1;
  // Lanes of different kinds do not share their random numbers.
  own.seed = options.seed + static_cast<uint64_t>(place);
  return own;
}

MixedWorkload::MixedWorkload(const Options& options, const TensorPool& pool,
                             const std::shared_ptr<client::Client>& client)
    : num_lanes_(options.sessions) {
  for (size_t i = 0; i < kinds_.size(); ++i) {
    kinds_[i] = MakeWorkload(OptionsOf(options, kKinds[i]), pool, client);
  }
}

void MixedWorkload::Prepare(int lane, const client::CallOptions& call,
                            client::StatusCallback done) {
  Of(lane).Prepare(lane / kNumKinds, call, std::move(done));
}

void MixedWorkload::Send(int lane, const client::CallOptions& call, AnswerCallback done) {
  Of(lane).Send(lane / kNumKinds, call, std::move(done));
}

void MixedWorkload::Close(int lane, const client::CallOptions& call, client::StatusCallback done) {
  Of(lane).Close(lane / kNumKinds, call, std::move(done));
}

}  // namespace attention::loadgen
