// A worker's batch of one request.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "server/engine/worker.h"
#include "tests/support/fake_clock.h"

namespace attention::server {

// The request's answer, which must come once.
inline AttentionResult RunAlone(Worker& worker, const Clock& clock,
                                std::unique_ptr<AttentionRequest> request) {
  std::optional<AttentionResult> answer;
  request->arrival = clock.Now();
  request->completion = [&](std::unique_ptr<AttentionRequest>, AttentionResult result) {
    EXPECT_FALSE(answer.has_value()) << "completed twice";
    answer = std::move(result);
  };
  std::vector<std::unique_ptr<AttentionRequest>> requests;
  requests.push_back(std::move(request));
  worker.Execute({std::move(requests), clock.Now()});
  return *std::move(answer);
}

}  // namespace attention::server
