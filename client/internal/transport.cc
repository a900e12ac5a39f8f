#include "client/internal/transport.h"

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"

namespace attention::client::internal {
namespace {

// Counts the answers of a search; the last one, or the first that is the worker, ends it.
class Search {
 public:
  Search(std::string worker, size_t num_targets, std::function<void(absl::StatusOr<size_t>)> ready)
      : worker_(std::move(worker)), num_pending_(num_targets), ready_(std::move(ready)) {}

  void OnAnswer(const absl::StatusOr<v1::GetServerInfoResponse>& answer, size_t target) {
    std::function<void(absl::StatusOr<size_t>)> ready;
    bool is_found = false;
    absl::Status failure;
    {
      absl::MutexLock lock(&mutex_);
      --num_pending_;
      if (!answer.ok()) failure_.Update(answer.status());
      is_found = answer.ok() && answer->worker() == worker_;
      if (is_found || num_pending_ == 0) ready.swap(ready_);
      failure = failure_;
    }
    if (!ready) return;
    if (is_found) return ready(target);
    // A target that did not answer may be the owner: better its failure than another's "moved".
    if (!failure.ok()) return ready(std::move(failure));
    ready(size_t{0});
  }

 private:
  const std::string worker_;
  absl::Mutex mutex_;
  size_t num_pending_ ABSL_GUARDED_BY(mutex_);
  absl::Status failure_ ABSL_GUARDED_BY(mutex_);
  std::function<void(absl::StatusOr<size_t>)> ready_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

Route Transport::AnyTarget() {
  return [first = targets_.TakeTurn(), count = targets_.size()](int attempt) {
    return (first + static_cast<size_t>(attempt) - 1) % count;
  };
}

Route Transport::OneTarget(size_t target) {
  return [target](int) { return target; };
}

void Transport::FindOwner(const std::string& worker, const CallSettings& settings,
                          std::function<void(absl::StatusOr<size_t>)> ready) {
  if (const std::optional<size_t> known = targets_.TargetOf(worker); known.has_value()) {
    return ready(*known);
  }
  auto search = std::make_shared<Search>(worker, targets_.size(), std::move(ready));
  for (size_t target = 0; target < targets_.size(); ++target) {
    Unary<v1::GetServerInfoRequest, v1::GetServerInfoResponse>(
        settings, OneTarget(target), {},
        [](Endpoint& endpoint, auto... arguments) {
          endpoint.server->async()->GetServerInfo(std::move(arguments)...);
        },
        [self = shared_from_this(), search](absl::StatusOr<v1::GetServerInfoResponse> answer,
                                            size_t answered) {
          if (answer.ok()) self->targets_.Learn(answer->worker(), answered);
          search->OnAnswer(answer, answered);
        });
  }
}

absl::Status Transport::CheckSize(size_t num_bytes) const {
  if (num_bytes <= static_cast<size_t>(options_.max_message_bytes)) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat(
      "the request has ", num_bytes, " bytes, max_message_bytes is ", options_.max_message_bytes));
}

}  // namespace attention::client::internal
