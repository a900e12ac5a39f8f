#include "server/rpc/session_archives.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "attention/v1/session_service.pb.h"
#include "server/base/random_id.h"
#include "server/base/status_macros.h"
#include "server/rpc/begin_change.h"
#include "server/rpc/session_messages.h"
#include "server/rpc/status_mapping.h"
#include "server/rpc/unary_call.h"
#include "server/wire/geometry_codec.h"
#include "server/wire/session_archive.h"

namespace attention::server {
namespace {

// The part that both have in common: requests with one answer each, in their order, of which some
// wait for the device.
template <typename WireRequest, typename WireResponse>
class ArchiveStream : public PipelinedStream {
 public:
  using PipelinedStream::PipelinedStream;

 protected:
  // A request until it is answered.
  struct Pending {
    std::size_t bytes = 0;
    WireRequest wire;
    WireResponse response;
    ResultLedger::Charge charge = nullptr;  // for the rows of the response
    std::vector<std::uint32_t> checksums = {};
  };
  using PendingPtr = std::shared_ptr<Pending>;

  // Answers at once, or leads to Finish.
  virtual absl::Status Take(const PendingPtr& pending) = 0;

  std::unique_ptr<AttentionRequest> MakeChange(CacheChange::Kind kind,
                                               const std::shared_ptr<KvCache>& cache) const {
    std::unique_ptr<AttentionRequest> request = frame().MakeRequest();
    BeginChange(kind, cache, request.get());
    request->work = WorkOnTables(*cache);
    return request;
  }

  // The transfer of a chunk's rows.
  std::unique_ptr<AttentionRequest> MakeTransfer(CacheChange::Kind kind,
                                                 const std::shared_ptr<KvCache>& cache,
                                                 const PendingPtr& pending,
                                                 v1::ArchiveChunk& chunk) const {
    std::unique_ptr<AttentionRequest> request = MakeChange(kind, cache);
    request->change->rows =
        RowsTransfer{chunk.layer(), chunk.begin(), chunk.num_tokens(),
                     RowsOf(chunk, cache->geometry(chunk.layer())), &pending->checksums};
    const auto bytes = static_cast<double>(chunk.rows().size());
    services().work_model.Charge({.kv_bytes = bytes, .io_bytes = bytes},
                                 static_cast<std::int64_t>(bytes), 1, kStepCosts, request.get());
    return request;
  }

  // `complete`, which returns a status, fills the response in when the change has been made.
  template <typename Complete>
  absl::Status Submit(const PendingPtr& pending, std::unique_ptr<AttentionRequest> request,
                      Complete complete) {
    auto self = std::static_pointer_cast<ArchiveStream>(shared_from_this());
    request->completion = [self = std::move(self), pending, complete = std::move(complete)](
                              std::unique_ptr<AttentionRequest>, AttentionResult result) mutable {
      self->Finish(pending, ContainExceptions([&]() -> absl::Status {
                     ATTENTION_RETURN_IF_ERROR(result.status);
                     return complete();
                   }));
    };
    return services().scheduler.Submit(request, Scheduler::Start::kWithPending);
  }

  void Finish(const PendingPtr& pending, const absl::Status& status) {
    if (!status.ok()) OnError(status);
    Answer(pending, status);
  }
  virtual void OnError(const absl::Status&) {}

  void Answer(const PendingPtr& pending, const absl::Status& status) {
    if (!status.ok()) {
      pending->response.Clear();
      *pending->response.mutable_error() = ToStreamError(status);
    }
    pending->response.set_request_id(pending->wire.request_id());
    SendLast(pending->bytes, [&] { return codec::OutgoingMessage(pending->response).Serialize(); });
  }

 private:
  absl::Status OnRequest(const grpc::ByteBuffer& bytes) final {
    auto pending = std::make_shared<Pending>();
    pending->bytes = bytes.Length();
    ATTENTION_RETURN_IF_ERROR(ParseSmall(bytes, &pending->wire));
    absl::Status status = frame().CheckRoom(pending->bytes);
    if (status.ok()) status = ContainExceptions([&] { return Take(pending); });
    if (!status.ok()) Finish(pending, status);
    return absl::OkStatus();
  }
};

class ExportStream final
    : public ArchiveStream<v1::ExportSessionRequest, v1::ExportSessionResponse> {
 public:
  using ArchiveStream::ArchiveStream;

 private:
  absl::Status Take(const PendingPtr& pending) override {
    switch (pending->wire.request_case()) {
      case v1::ExportSessionRequest::kBegin:
        return Begin(pending);
      case v1::ExportSessionRequest::kChunk:
        return Read(pending);
      default:
        return absl::InvalidArgumentError("request is missing, expected begin or chunk");
    }
  }

  // A fork, which nobody else knows, stays as it is.
  absl::Status Begin(const PendingPtr& pending) {
    const v1::ExportBegin& begin = pending->wire.begin();
    ATTENTION_ASSIGN_OR_RETURN(
        SessionLease acquired,
        services().sessions.Acquire(DecodeHandle(begin.handle()), frame().tenant()));
    if (begin.has_length() && (begin.length() < 0 || begin.length() > kMaxPosition)) {
      return absl::InvalidArgumentError(
          absl::StrCat("begin.length is ", begin.length(), ", expected 0 to ", kMaxPosition));
    }
    auto session = std::make_shared<const SessionLease>(std::move(acquired));
    auto fork = services().sessions.caches().CreateLike(*(*session)->cache);
    std::unique_ptr<AttentionRequest> request =
        MakeChange(CacheChange::Kind::kFork, (*session)->cache);
    request->change->copies.push_back(fork);
    if (begin.has_length()) request->change->length = begin.length();
    return Submit(pending, std::move(request), [this, pending, session, fork]() -> absl::Status {
      if (is_described_.load(std::memory_order_acquire)) {
        return absl::InvalidArgumentError("begin is there twice, expected it in the first request");
      }
      ATTENTION_RETURN_IF_ERROR(CheckIsWhole(*fork));
      const std::uint64_t given = pending->wire.begin().archive_id();
      archive_id_ = given != 0 ? given : MakeRandomNumber();
      cache_ = fork;
      Describe(pending->response.mutable_archive());
      is_described_.store(true, std::memory_order_release);
      return absl::OkStatus();
    });
  }

  // Tokens that a window has let go leave a gap, which the format does not know.
  static absl::Status CheckIsWhole(const KvCache& cache) {
    for (int layer = 0; layer < cache.num_layers(); ++layer) {
      if (cache.first_position(layer) == 0) continue;
      return absl::UnimplementedError(absl::StrCat(
          "layer ", layer, " has let go the tokens before position ", cache.first_position(layer),
          ", which its window hides: sessions that have are not exported"));
    }
    return absl::OkStatus();
  }

  void Describe(v1::SessionArchive* archive) {
    std::vector<std::int64_t> num_held;
    archive->set_format(kArchiveFormat);
    EncodeGeometry(cache_->shape(), archive->mutable_geometry());
    archive->set_length(cache_->committed_length());
    for (int layer = 0; layer < cache_->num_layers(); ++layer) {
      const LayerTokens tokens = cache_->tokens(layer);
      num_held.push_back(tokens.num_held());
      v1::ArchivedLayer* archived = archive->add_layers();
      archived->set_num_tokens(tokens.num_held());
      archived->set_compacted_length(tokens.compacted_length);
    }
    plan_.emplace(cache_->shape(), num_held);
    archive->set_num_chunks(plan_->num_chunks());
    archive->set_archive_id(archive_id_);
  }

  absl::Status Read(const PendingPtr& pending) {
    if (!is_described_.load(std::memory_order_acquire)) {
      return absl::FailedPreconditionError(
          "chunk is asked for before the archive has been described: wait for the answer to begin");
    }
    const std::int64_t index = pending->wire.chunk();
    if (index < 0 || index >= plan_->num_chunks()) {
      return absl::InvalidArgumentError(
          absl::StrCat("chunk is ", index, ", expected 0 to ", plan_->num_chunks() - 1));
    }
    const ArchivePlan::Chunk chunk = plan_->ChunkAt(index);
    const KvGeometry& geometry = cache_->geometry(chunk.layer);
    const auto bytes =
        static_cast<std::int64_t>(StoredRowsLayout::Of(geometry, chunk.num_tokens).bytes);
    ATTENTION_ASSIGN_OR_RETURN(
        pending->charge,
        frame().AdmitResults(static_cast<std::int64_t>(pending->bytes), 2 * bytes));
    *pending->response.mutable_chunk() = MakeChunk(index, chunk, geometry);
    return Submit(
        pending,
        MakeTransfer(CacheChange::Kind::kRead, cache_, pending, *pending->response.mutable_chunk()),
        [this, pending] {
          Seal(pending->checksums, archive_id_, pending->response.mutable_chunk());
          return absl::OkStatus();
        });
  }

  std::shared_ptr<KvCache> cache_;
  std::uint64_t archive_id_ = 0;
  std::optional<ArchivePlan> plan_;
  std::atomic<bool> is_described_{false};  // and none of these changes any more
};

class ImportStream final
    : public ArchiveStream<v1::ImportSessionRequest, v1::ImportSessionResponse> {
 public:
  using ArchiveStream::ArchiveStream;

 private:
  absl::Status Take(const PendingPtr& pending) override {
    if (has_ended_) {
      // Not an error of the import, which may have made its session.
      Answer(pending, absl::InvalidArgumentError("a request comes after end, expected none"));
      return absl::OkStatus();
    }
    ATTENTION_RETURN_IF_ERROR(CheckGoesOn());
    switch (pending->wire.request_case()) {
      case v1::ImportSessionRequest::kBegin:
        return Begin(pending);
      case v1::ImportSessionRequest::kChunk:
        return Write(pending);
      case v1::ImportSessionRequest::kEnd:
        return End(pending);
      default:
        return absl::InvalidArgumentError("request is missing, expected begin, chunk or end");
    }
  }

  absl::Status CheckGoesOn() const {
    if (!has_failed_.load(std::memory_order_acquire)) return absl::OkStatus();
    return absl::FailedPreconditionError("the import has failed: begin anew in another stream");
  }
  void OnError(const absl::Status&) override { has_failed_.store(true, std::memory_order_release); }

  absl::Status Begin(const PendingPtr& pending) {
    if (cache_ != nullptr) {
      return absl::InvalidArgumentError("begin is there twice, expected it in the first request");
    }
    ATTENTION_RETURN_IF_ERROR(services().scheduler.CheckAccepting());
    const v1::ImportBegin& begin = pending->wire.begin();
    if (begin.archive().format() != kArchiveFormat) {
      return absl::UnimplementedError(absl::StrCat(
          "begin.archive.format is ", begin.archive().format(), ", expected ", kArchiveFormat));
    }
    v1::CreateSessionRequest create;
    *create.mutable_geometry() = begin.archive().geometry();
    if (begin.has_ttl()) *create.mutable_ttl() = begin.ttl();
    create.set_name(begin.name());
    *create.mutable_labels() = begin.labels();
    ATTENTION_ASSIGN_OR_RETURN(candidate_.request, DecodeNewSession(create, frame().tenant()));
    const CacheShape& shape = candidate_.request.shape;
    ATTENTION_RETURN_IF_ERROR(CheckTokens(begin.archive(), shape.num_layers()));
    const std::vector<std::int64_t> num_held = NumHeldOf(begin.archive());
    const std::int64_t most =
        num_held.empty() ? 0 : *std::max_element(num_held.begin(), num_held.end());
    ATTENTION_ASSIGN_OR_RETURN(std::shared_ptr<KvCache> cache,
                               services().sessions.caches().Create(shape, most, frame().tenant()));
    ATTENTION_RETURN_IF_ERROR(CheckNumChunks(begin.archive(), cache->shape()));
    cache_ = std::move(cache);
    candidate_.cache = cache_;
    archive_id_ = begin.archive().archive_id();
    plan_.emplace(cache_->shape(), num_held);
    for (int layer = 0; layer < cache_->num_layers(); ++layer) {
      cache_->SetCompacted(layer, begin.archive().length() - num_held[layer],
                           begin.archive().layers(layer).compacted_length());
    }
    pending->response.set_next_chunk(0);
    Finish(pending, absl::OkStatus());
    return absl::OkStatus();
  }

  absl::Status CheckHasBegun() const {
    if (cache_ != nullptr) return absl::OkStatus();
    return absl::InvalidArgumentError("begin is missing, expected it in the first request");
  }

  absl::Status Write(const PendingPtr& pending) {
    ATTENTION_RETURN_IF_ERROR(CheckHasBegun());
    v1::ArchiveChunk& chunk = *pending->wire.mutable_chunk();
    ATTENTION_RETURN_IF_ERROR(CheckChunk(chunk, *plan_, next_chunk_, cache_->shape(), archive_id_));
    ++next_chunk_;
    pending->checksums = RowChecksumsOf(chunk);
    pending->response.set_next_chunk(next_chunk_);
    return Submit(pending, MakeTransfer(CacheChange::Kind::kWrite, cache_, pending, chunk),
                  [] { return absl::OkStatus(); });
  }

  absl::Status End(const PendingPtr& pending) {
    ATTENTION_RETURN_IF_ERROR(CheckHasBegun());
    if (next_chunk_ != plan_->num_chunks()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "end comes after ", next_chunk_, " chunks, expected it after all ", plan_->num_chunks()));
    }
    has_ended_ = true;
    // Reads nothing, behind all that is written.
    std::unique_ptr<AttentionRequest> request = MakeChange(CacheChange::Kind::kRead, cache_);
    request->change->rows.emplace();
    return Submit(pending, std::move(request), [this, pending]() -> absl::Status {
      ATTENTION_RETURN_IF_ERROR(CheckGoesOn());
      std::vector<SessionTable::Candidate> candidates;
      candidates.push_back(std::move(candidate_));
      ATTENTION_ASSIGN_OR_RETURN(const std::vector<SessionLease> made,
                                 services().sessions.Add(std::move(candidates)));
      if (made[0]->cache != cache_) {
        return absl::AlreadyExistsError(
            absl::StrCat("begin.name: there is a session of this name already"));
      }
      EncodeSession(services().sessions, made[0], pending->response.mutable_session());
      return absl::OkStatus();
    });
  }

  SessionTable::Candidate candidate_;
  std::shared_ptr<KvCache> cache_;
  std::uint64_t archive_id_ = 0;
  std::optional<ArchivePlan> plan_;
  std::int64_t next_chunk_ = 0;
  bool has_ended_ = false;
  std::atomic<bool> has_failed_{false};
};

}  // namespace

std::shared_ptr<PipelinedStream> MakeExportStream(const StreamMethod& method) {
  return std::make_shared<ExportStream>(method);
}

std::shared_ptr<PipelinedStream> MakeImportStream(const StreamMethod& method) {
  return std::make_shared<ImportStream>(method);
}

}  // namespace attention::server
