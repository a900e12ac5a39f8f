// --workload mixed: a third of the virtual users each attends, prefills and decodes, all at once,
// as the callers of one server in use do.
#pragma once

#include <array>
#include <memory>

#include "client/loadgen/workload.h"

namespace attention::loadgen {

class MixedWorkload final : public Workload {
 public:
  static constexpr int kNumKinds = 3;

  // The options of one of the three, with its share of the virtual users. `kind` is not kMixed.
  static Options OptionsOf(const Options& options, WorkloadKind kind);

  MixedWorkload(const Options& options, const TensorPool& pool,
                const std::shared_ptr<client::Client>& client);

  int num_users() const override { return num_users_; }
  bool IsReady(int user) const override { return Of(user).IsReady(user / kNumKinds); }
  void Prepare(int user, const client::CallOptions& call, client::StatusCallback done) override;
  void Send(int user, const client::CallOptions& call, AnswerCallback done) override;
  void Close(int user, const client::CallOptions& call, client::StatusCallback done) override;

 private:
  // The kinds take users in turn.
  Workload& Of(int user) const { return *kinds_[static_cast<std::size_t>(user % kNumKinds)]; }

  const int num_users_;
  std::array<std::unique_ptr<Workload>, kNumKinds> kinds_;
};

}  // namespace attention::loadgen
