#include "client/internal/stream/pending_steps.h"

#include <algorithm>
#include <utility>

#include "absl/hash/hash.h"
#include "attention/client/errors.h"
#include "client/internal/convert/error_details.h"

namespace attention::client::internal {
namespace {

bool ShareALayer(const PendingStep& a, const PendingStep& b) {
  return std::find_first_of(a.layers.begin(), a.layers.end(), b.layers.begin(), b.layers.end()) !=
         a.layers.end();
}

// True if a step was refused for its position, as it is when the one before it is missing.
bool IsMisplaced(const absl::StatusOr<StepResult>& result) {
  return result.ok() && std::any_of(result->results.begin(), result->results.end(),
                                    [](const SessionStepResult& step) {
                                      return ReasonOf(step.status) == kPositionMismatch;
                                    });
}

// True if one of the steps that `counts` was sent before this one, to the same layer.
template <typename Steps, typename Counts>
bool FollowsOne(std::uint64_t id, const PendingStep& step, const Steps& steps, Counts counts) {
  return std::any_of(steps.begin(), steps.end(), [&](const auto& entry) {
    return entry.first < id && counts(entry.second) && ShareALayer(entry.second, step);
  });
}

bool Any(const PendingStep&) { return true; }
bool IsShared(const PendingStep& step) { return step.shared != nullptr; }

}  // namespace

std::vector<std::size_t> PendingSteps::LayersOf(const StepRequest& request) {
  std::vector<std::size_t> layers;
  layers.reserve(request.steps.size());
  for (const SessionStep& step : request.steps) {
    layers.push_back(absl::HashOf(step.handle.session_id, step.layer));
  }
  return layers;
}

std::optional<PendingStep> PendingSteps::Take(std::uint64_t id) {
  const auto found = sent_.find(id);
  if (found == sent_.end()) return std::nullopt;
  PendingStep step = std::move(found->second);
  sent_.erase(found);
  has_taken_shared_ = IsShared(step);
  return step;
}

bool PendingSteps::HoldBack(std::uint64_t id, PendingStep& step, bool is_lost,
                            absl::StatusOr<StepResult>& result) {
  has_taken_shared_ = false;
  if (is_lost || FollowsOne(id, step, again_, Any)) {
    again_.emplace(id, std::move(step));
    return true;
  }
  if (!IsMisplaced(result) || !FollowsOne(id, step, sent_, IsShared)) return false;
  refused_.emplace(id, Answered{std::move(step), std::move(result)});
  return true;
}

PendingSteps::Decided PendingSteps::Decide() {
  Decided decided;
  for (auto& [id, refused] : refused_) {
    if (FollowsOne(id, refused.step, again_, Any)) {
      again_.emplace(id, std::move(refused.step));
    } else {
      decided.answered.emplace(id, std::move(refused));
    }
  }
  refused_.clear();
  decided.again.swap(again_);
  return decided;
}

PendingSteps::Decided PendingSteps::Clear() {
  Decided all;
  all.answered.swap(refused_);
  all.again.swap(again_);
  for (auto& [id, step] : sent_) all.again.emplace(id, std::move(step));
  sent_.clear();
  return all;
}

bool PendingSteps::may_send_again() const {
  return has_taken_shared_ || std::any_of(sent_.begin(), sent_.end(),
                                          [](const auto& entry) { return IsShared(entry.second); });
}

}  // namespace attention::client::internal
