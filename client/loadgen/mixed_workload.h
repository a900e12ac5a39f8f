// --workload mixed: a third of the lanes each attends, prefills and decodes, all at once, as the
// callers of one server in use do.
#pragma once

#include <array>
#include <memory>

#include "client/loadgen/workload.h"

namespace attention::loadgen {

class MixedWorkload final : public Workload {
 public:
  static constexpr int kNumKinds = 3;

  // The options of one of the three, with its share of the lanes. `kind` is not kMixed.
  static Options OptionsOf(const Options& options, WorkloadKind kind);

  MixedWorkload(const Options& options, const TensorPool& pool,
                const std::shared_ptr<client::Client>& client);

  int num_lanes() const override { return num_lanes_; }
  bool IsReady(int lane) const override { return Of(lane).IsReady(lane / kNumKinds); }
  void Prepare(int lane, const client::CallOptions& call, client::StatusCallback done) override;
  void Send(int lane, const client::CallOptions& call, AnswerCallback done) override;
  void Close(int lane, const client::CallOptions& call, client::StatusCallback done) override;

 private:
  // Lanes are dealt out in turn.
  Workload& Of(int lane) const { return *kinds_[static_cast<size_t>(lane % kNumKinds)]; }

  const int num_lanes_;
  std::array<std::unique_ptr<Workload>, kNumKinds> kinds_;
};

}  // namespace attention::loadgen
