#include "server/rpc/session_changes.h"

#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "attention/v1/session_service.pb.h"
#include "kernels/api/attention_params.h"
#include "server/base/status_macros.h"
#include "server/rpc/begin_change.h"
#include "server/rpc/session_messages.h"
#include "server/wire/kept_tokens_decoder.h"

namespace attention::server {
namespace {

constexpr int kMaxCopies = 1024;
constexpr int kMaxReordered = 1024;

absl::Status CheckLength(std::int64_t length) {
  if (length >= 0 && length <= kMaxPosition) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("length is ", length, ", expected 0 to ", kMaxPosition));
}

// The part that the calls have in common.
class ChangeCall {
 public:
  ChangeCall(const ServiceContext& services, const CallFrame& frame)
      : services_(services), frame_(frame) {}

 protected:
  ~ChangeCall() = default;

  absl::StatusOr<SessionLease> Acquire(const v1::SessionHandle& handle) const {
    return services_.sessions.Acquire(DecodeHandle(handle), frame_.tenant());
  }

  const ServiceContext& services() const { return services_; }
  const CallFrame& frame() const { return frame_; }

 private:
  const ServiceContext& services_;
  const CallFrame& frame_;
};

class ForkCall final : public ChangeCall {
 public:
  using Request = v1::ForkSessionRequest;
  using Response = v1::ForkSessionResponse;
  using ChangeCall::ChangeCall;

  // Without a change in `request` the copies are there already.
  absl::Status Begin(const Request& wire, AttentionRequest* request) {
    ATTENTION_ASSIGN_OR_RETURN(source_, Acquire(wire.handle()));
    ATTENTION_ASSIGN_OR_RETURN(const SessionTable::NewSession like, DecodeCopy(wire));
    const int num_copies = wire.num_copies() == 0 ? 1 : wire.num_copies();
    for (int i = 0; i < num_copies; ++i) {
      copies_.push_back({like, nullptr});
      if (!wire.names().empty()) copies_.back().request.name = wire.names(i);
    }
    ATTENTION_RETURN_IF_ERROR(services().sessions.MakeCaches(*source_->cache, copies_));
    for (const SessionTable::Candidate& copy : copies_) {
      if (copy.cache == nullptr) continue;
      if (!request->change) BeginChange(CacheChange::Kind::kFork, source_->cache, request);
      request->change->copies.push_back(copy.cache);
    }
    if (!request->change) return absl::OkStatus();
    if (wire.has_length()) request->change->length = wire.length();
    request->work = WorkOnTables(*source_->cache, request->change->copies.size());
    return absl::OkStatus();
  }

  absl::Status Complete(Response* response) {
    ATTENTION_ASSIGN_OR_RETURN(const std::vector<SessionLease> made,
                               services().sessions.Add(std::move(copies_)));
    for (const SessionLease& session : made) {
      EncodeSession(services().sessions, session, response->add_sessions());
    }
    return absl::OkStatus();
  }

 private:
  absl::StatusOr<SessionTable::NewSession> DecodeCopy(const Request& wire) const {
    if (wire.has_length()) ATTENTION_RETURN_IF_ERROR(CheckLength(wire.length()));
    if (wire.num_copies() < 0 || wire.num_copies() > kMaxCopies) {
      return absl::InvalidArgumentError(absl::StrCat(
          "num_copies is ", wire.num_copies(), ", expected 1 to ", kMaxCopies, ", or 0 for 1"));
    }
    const int num_copies = wire.num_copies() == 0 ? 1 : wire.num_copies();
    if (!wire.names().empty() && wire.names_size() != num_copies) {
      return absl::InvalidArgumentError(absl::StrCat("names has ", wire.names_size(),
                                                     " entries, expected none or ", num_copies,
                                                     ", one for each copy"));
    }
    std::set<std::string> names;
    for (int i = 0; i < wire.names_size(); ++i) {
      if (wire.names(i).empty() || !names.insert(wire.names(i)).second) {
        return absl::InvalidArgumentError(
            absl::StrCat("names[", i, "] is ", wire.names(i).empty() ? "empty" : "there twice",
                         ", expected names that differ"));
      }
    }
    SessionTable::NewSession copy;
    copy.tenant = frame().tenant();
    copy.shape = source_->cache->shape();
    if (wire.has_ttl()) {
      ATTENTION_ASSIGN_OR_RETURN(copy.ttl, DecodeTtl(wire.ttl()));
    }
    return copy;
  }

  SessionLease source_;
  std::vector<SessionTable::Candidate> copies_;
};

// A call whose answer is the session that it changed.
template <typename WireRequest, typename WireResponse>
class OneSessionCall : public ChangeCall {
 public:
  using Request = WireRequest;
  using Response = WireResponse;
  using ChangeCall::ChangeCall;

  absl::Status Complete(Response* response) {
    EncodeSession(services().sessions, session_, response->mutable_session());
    return absl::OkStatus();
  }

 protected:
  ~OneSessionCall() = default;

  SessionLease session_;
};

class TruncateCall final
    : public OneSessionCall<v1::TruncateSessionRequest, v1::TruncateSessionResponse> {
 public:
  using OneSessionCall::OneSessionCall;

  absl::Status Begin(const Request& wire, AttentionRequest* request) {
    ATTENTION_ASSIGN_OR_RETURN(session_, Acquire(wire.handle()));
    if (!wire.has_length()) {
      return absl::InvalidArgumentError("length is missing, expected the tokens that stay");
    }
    ATTENTION_RETURN_IF_ERROR(CheckLength(wire.length()));
    CacheChange& change = BeginChange(CacheChange::Kind::kTruncate, session_->cache, request);
    change.writers = {wire.handle().writer()};
    change.length = wire.length();
    ATTENTION_RETURN_IF_ERROR(CheckAccepted(wire));
    change.accepted = {wire.accepted().begin(), wire.accepted().end()};
    change.change_id = wire.change_id();
    request->work = WorkOnTables(*session_->cache);
    return absl::OkStatus();
  }

 private:
  static absl::Status CheckAccepted(const Request& wire) {
    for (int i = 0; i < wire.accepted_size(); ++i) {
      const int least = i == 0 ? 0 : wire.accepted(i - 1) + 1;
      if (wire.accepted(i) >= least) continue;
      return absl::InvalidArgumentError(
          absl::StrCat("accepted[", i, "] is ", wire.accepted(i), ", expected at least ", least));
    }
    return absl::OkStatus();
  }
};

class KeepCall final : public OneSessionCall<v1::KeepTokensRequest, v1::KeepTokensResponse> {
 public:
  using OneSessionCall::OneSessionCall;

  absl::Status Begin(const Request& wire, AttentionRequest* request) {
    ATTENTION_ASSIGN_OR_RETURN(session_, Acquire(wire.handle()));
    CacheChange& change = BeginChange(CacheChange::Kind::kKeep, session_->cache, request);
    change.writers = {wire.handle().writer()};
    change.change_id = wire.change_id();
    ATTENTION_ASSIGN_OR_RETURN(change.keep, DecodeKeptTokens(wire));
    // At most all that the session has is read and written.
    const auto bytes = static_cast<double>(session_->cache->kv_bytes());
    request->work =
        WorkOnTables(*session_->cache) +
        absl::Seconds(services().work_model.Roofline({.kv_bytes = bytes, .io_bytes = bytes}));
    return absl::OkStatus();
  }
};

class AttachCall final : public ChangeCall {
 public:
  using Request = v1::AttachSessionRequest;
  using Response = v1::AttachSessionResponse;
  using ChangeCall::ChangeCall;

  absl::Status Begin(const Request& wire, AttentionRequest* request) {
    handle_ = wire.handle();
    ATTENTION_ASSIGN_OR_RETURN(session_, Acquire(handle_));
    writer_ = ++session_->last_writer;
    BeginChange(CacheChange::Kind::kAttach, session_->cache, request).writers = {writer_};
    request->work = WorkOnTables(*session_->cache);
    return absl::OkStatus();
  }

  absl::Status Complete(Response* response) {
    session_->binding.store(0);
    // Its stream may have ended before that, and taken it along.
    ATTENTION_RETURN_IF_ERROR(Acquire(handle_).status());
    EncodeSession(services().sessions, session_, response->mutable_session());
    // A later one may have the session by now, which this one is then told by its first step.
    response->mutable_session()->mutable_handle()->set_writer(writer_);
    return absl::OkStatus();
  }

 private:
  v1::SessionHandle handle_;
  SessionLease session_;
  std::uint64_t writer_ = 0;
};

class ReorderCall final : public ChangeCall {
 public:
  using Request = v1::ReorderSessionsRequest;
  using Response = v1::ReorderSessionsResponse;
  using ChangeCall::ChangeCall;

  absl::Status Begin(const Request& wire, AttentionRequest* request) {
    const int count = wire.handles_size();
    if (count < 1 || count > kMaxReordered) {
      return absl::InvalidArgumentError(
          absl::StrCat("handles has ", count, " entries, expected 1 to ", kMaxReordered));
    }
    if (wire.sources_size() != count) {
      return absl::InvalidArgumentError(absl::StrCat("sources has ", wire.sources_size(),
                                                     " entries, expected ", count,
                                                     ", one for each of handles"));
    }
    for (int i = 0; i < count; ++i) ATTENTION_RETURN_IF_ERROR(AddSession(wire, i, request));
    request->change->change_id = wire.reorder_id();
    request->work = WorkOnTables(*sessions_[0]->cache, sessions_.size());
    return absl::OkStatus();
  }

  absl::Status Complete(Response* response) {
    for (const SessionLease& session : sessions_) {
      EncodeSession(services().sessions, session, response->add_sessions());
    }
    return absl::OkStatus();
  }

 private:
  absl::Status AddSession(const Request& wire, int i, AttentionRequest* request) {
    absl::StatusOr<SessionLease> session = Acquire(wire.handles(i));
    const std::string field = absl::StrCat("handles[", i, "]");
    if (!session.ok()) return AtSession(field, session.status());
    ATTENTION_RETURN_IF_ERROR(CheckKind(field, **session));
    if (wire.sources(i) < 0 || wire.sources(i) >= wire.handles_size()) {
      return absl::InvalidArgumentError(absl::StrCat("sources[", i, "] is ", wire.sources(i),
                                                     ", expected 0 to ", wire.handles_size() - 1));
    }
    if (request->change) {
      request->change->caches.push_back((*session)->cache);
    } else {
      BeginChange(CacheChange::Kind::kReorder, (*session)->cache, request);
    }
    request->change->writers.push_back(wire.handles(i).writer());
    request->change->sources.push_back(static_cast<std::size_t>(wire.sources(i)));
    sessions_.push_back(*std::move(session));
    return absl::OkStatus();
  }

  absl::Status CheckKind(const std::string& field, const Session& session) {
    if (!ids_.insert(session.session_id).second) {
      return absl::InvalidArgumentError(
          absl::StrCat(field, " is there twice, expected sessions that differ"));
    }
    if (sessions_.empty()) return absl::OkStatus();
    const KvCache& first = *sessions_[0]->cache;
    const KvCache& cache = *session.cache;
    if (cache.shape() != first.shape()) {
      return absl::InvalidArgumentError(
          absl::StrCat(field, " has another geometry than handles[0], expected the same"));
    }
    if (cache.device() == first.device()) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat(field,
                     " lies on another device than handles[0], expected sessions that "
                     "were forked from one"));
  }

  std::vector<SessionLease> sessions_;
  std::set<std::string> ids_;
};

template <typename CallType>
void ServeChange(UnaryCall& call, const ServiceContext& services) {
  typename CallType::Request wire;
  auto change = std::make_shared<CallType>(services, call.frame());
  std::unique_ptr<AttentionRequest> request = call.frame().MakeRequest();
  absl::Status status = call.frame().CheckRoom(call.request().Length());
  if (status.ok()) status = ParseSmall(call.request(), &wire);
  if (status.ok()) status = change->Begin(wire, request.get());
  if (!status.ok()) return call.Finish(status);
  const auto answer = [&call, change]() -> absl::StatusOr<grpc::ByteBuffer> {
    typename CallType::Response response;
    ATTENTION_RETURN_IF_ERROR(change->Complete(&response));
    return codec::OutgoingMessage(response).Serialize();
  };
  if (!request->change) return call.FinishWith(answer);
  request->bytes = static_cast<std::int64_t>(call.request().Length());
  request->completion = [&call, answer](std::unique_ptr<AttentionRequest>, AttentionResult result) {
    if (!result.status.ok()) return call.Finish(result.status);
    call.FinishWith(answer);
  };
  status = services.scheduler.Submit(request, Scheduler::Start::kWithPending);
  if (!status.ok()) call.Finish(status);
}

}  // namespace

void ServeFork(UnaryCall& call, const ServiceContext& services) {
  ServeChange<ForkCall>(call, services);
}

void ServeTruncate(UnaryCall& call, const ServiceContext& services) {
  ServeChange<TruncateCall>(call, services);
}

void ServeKeep(UnaryCall& call, const ServiceContext& services) {
  ServeChange<KeepCall>(call, services);
}

void ServeAttach(UnaryCall& call, const ServiceContext& services) {
  ServeChange<AttachCall>(call, services);
}

void ServeReorder(UnaryCall& call, const ServiceContext& services) {
  ServeChange<ReorderCall>(call, services);
}

}  // namespace attention::server
