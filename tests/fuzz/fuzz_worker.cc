#include "tests/fuzz/fuzz_worker.h"

#include <utility>

#include "kernels/base/check.h"
#include "kernels/registry.h"
#include "server/engine/worker.h"

namespace attention::fuzz {

AttentionBackend& Backend() {
  static const std::unique_ptr<AttentionBackend> backend = [] {
    auto made = MakeBackend("cpu", {.num_threads = 1});
    ATTENTION_CHECK(made.ok());
    return *std::move(made);
  }();
  return *backend;
}

server::AttentionResult Run(std::unique_ptr<server::AttentionRequest> request) {
  static const server::RealClock clock;
  static server::ServerMetrics metrics;
  static server::Worker worker(Backend(), clock, metrics);
  server::AttentionResult answer;
  int num_completions = 0;
  request->completion = [&](std::unique_ptr<server::AttentionRequest>,
                            server::AttentionResult result) {
    answer = std::move(result);
    ++num_completions;
  };
  server::Batch batch;
  batch.requests.push_back(std::move(request));
  batch.taken = clock.Now();
  worker.Execute(std::move(batch));
  ATTENTION_CHECK(num_completions == 1);
  // Whatever came over the wire is a client's mistake, or fine; never ours.
  ATTENTION_CHECK(answer.status.code() != absl::StatusCode::kInternal);
  return answer;
}

}  // namespace attention::fuzz
