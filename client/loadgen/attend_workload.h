// --workload attend: stateless calls, q, k and v fresh in each.
#pragma once

#include <memory>
#include <random>
#include <vector>

#include "client/loadgen/workload.h"

namespace attention::loadgen {

class AttendWorkload final : public Workload {
 public:
  AttendWorkload(const Options& options, const TensorPool& pool,
                 std::shared_ptr<client::Client> client);

  int num_users() const override { return static_cast<int>(users_.size()); }
  bool IsReady(int) const override { return true; }
  void Prepare(int user, const client::CallOptions& call, client::StatusCallback done) override;
  void Send(int user, const client::CallOptions& call, AnswerCallback done) override;
  void Close(int user, const client::CallOptions& call, client::StatusCallback done) override;

 private:
  const ShapeOptions shape_;
  const TensorPool& pool_;
  const std::shared_ptr<client::Client> client_;
  std::vector<std::mt19937_64> users_;
};

}  // namespace attention::loadgen
