#include "client/internal/call/owner_search.h"

#include <optional>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "attention/v1/server_service.pb.h"
#include "client/internal/call/unary_call.h"

namespace attention::client::internal {
namespace {

// Counts the answers of a search; the last one, or the first that is the server, ends it.
class Search {
 public:
  Search(std::string server_name, std::size_t num_targets,
         std::function<void(absl::StatusOr<std::size_t>)> ready)
      : server_name_(std::move(server_name)), num_pending_(num_targets), ready_(std::move(ready)) {}

  // `answer`: the target's name.
  void OnAnswer(const absl::StatusOr<std::string>& answer, std::size_t target) {
    std::function<void(absl::StatusOr<std::size_t>)> ready;
    bool is_found = false;
    absl::Status failure;
    {
      absl::MutexLock lock(&mutex_);
      --num_pending_;
      if (!answer.ok()) failure_.Update(answer.status());
      is_found = answer.ok() && *answer == server_name_;
      if (is_found || num_pending_ == 0) ready.swap(ready_);
      failure = failure_;
    }
    if (!ready) return;
    if (is_found) return ready(target);
    // A target that did not answer may be the owner: better its failure than another's "moved".
    if (!failure.ok()) return ready(std::move(failure));
    ready(std::size_t{0});
  }

 private:
  const std::string server_name_;
  absl::Mutex mutex_;
  std::size_t num_pending_ ABSL_GUARDED_BY(mutex_);
  absl::Status failure_ ABSL_GUARDED_BY(mutex_);
  std::function<void(absl::StatusOr<std::size_t>)> ready_ ABSL_GUARDED_BY(mutex_);
};

// The server that a GetServerInfo answer names.
absl::StatusOr<std::string> NameIn(const absl::StatusOr<grpc::ByteBuffer>& answer) {
  if (!answer.ok()) return answer.status();
  return ReadAnswer<v1::GetServerInfoResponse>(
      *answer, [](const v1::GetServerInfoResponse& info, const codec::ReceivedMessage&) {
        return absl::StatusOr<std::string>(info.server_name());
      });
}

}  // namespace

void FindOwner(const std::shared_ptr<Transport>& transport, const std::string& server_name,
               const CallSettings& settings,
               std::function<void(absl::StatusOr<std::size_t>)> ready) {
  Targets& targets = transport->targets();
  if (const std::optional<std::size_t> known = targets.TargetOf(server_name); known.has_value()) {
    return ready(*known);
  }
  absl::StatusOr<grpc::ByteBuffer> bytes =
      transport->Serialize(codec::OutgoingMessage(v1::GetServerInfoRequest()));
  if (!bytes.ok()) return ready(std::move(bytes).status());
  const auto request = std::make_shared<FixedRequest>(*std::move(bytes));
  CallSettings at_once = settings;
  at_once.may_block = false;
  auto search = std::make_shared<Search>(server_name, targets.size(), std::move(ready));
  for (std::size_t target = 0; target < targets.size(); ++target) {
    RunUnary(
        transport,
        {at_once, Transport::OneTarget(target),
         ATTENTION_CLIENT_METHOD(ServerService, GetServerInfo)},
        request,
        [transport, search](const absl::StatusOr<grpc::ByteBuffer>& answer, std::size_t answered) {
          const absl::StatusOr<std::string> name = NameIn(answer);
          if (name.ok()) transport->targets().Learn(*name, answered);
          search->OnAnswer(name, answered);
        });
  }
}

}  // namespace attention::client::internal
