#include "client/loadgen/mixed_workload.h"

#include <utility>

namespace attention::loadgen {
namespace {

// In the order in which they take users.
constexpr std::array<WorkloadKind, MixedWorkload::kNumKinds> kKinds = {
    WorkloadKind::kAttend, WorkloadKind::kPrefill, WorkloadKind::kDecode};

}  // namespace

Options MixedWorkload::OptionsOf(const Options& options, WorkloadKind kind) {
  Options own = options;
  own.workload = kind;
  int first = 0;
  while (kKinds[static_cast<std::size_t>(first)] != kind) ++first;
  // Its users are `first`, `first` + 3, ... below the number of all.
  own.sessions = (options.sessions - first + kNumKinds - 1) / kNumKinds;
  own.concurrency = own.max_in_flight = own.sessions;
  if (kind == WorkloadKind::kDecode) own.shape.q_len = 1;
  // Users of different kinds do not share their random numbers.
  own.seed = options.seed + static_cast<std::uint64_t>(first);
  return own;
}

MixedWorkload::MixedWorkload(const Options& options, const TensorPool& pool,
                             const std::shared_ptr<client::Client>& client)
    : num_users_(options.sessions) {
  for (std::size_t i = 0; i < kinds_.size(); ++i) {
    kinds_[i] = MakeWorkload(OptionsOf(options, kKinds[i]), pool, client);
  }
}

void MixedWorkload::Prepare(int user, const client::CallOptions& call,
                            client::StatusCallback done) {
  Of(user).Prepare(user / kNumKinds, call, std::move(done));
}

void MixedWorkload::Send(int user, const client::CallOptions& call, AnswerCallback done) {
  Of(user).Send(user / kNumKinds, call, std::move(done));
}

void MixedWorkload::Close(int user, const client::CallOptions& call, client::StatusCallback done) {
  Of(user).Close(user / kNumKinds, call, std::move(done));
}

}  // namespace attention::loadgen
