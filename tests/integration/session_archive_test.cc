// Sessions that leave as archives and come back, on the same server and on another one.
#include <memory>
#include <optional>
#include <span>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "tests/support/session_driver.h"

namespace attention::testing {
namespace {

using ::testing::HasSubstr;

constexpr std::int64_t kLength = 300;

// A stream of requests, each with one answer.
template <typename Request, typename Response>
class Exchange {
 public:
  using Stream = grpc::ClientReaderWriter<Request, Response>;
  template <typename Open>
  explicit Exchange(Open open) : stream_(open(context_.get())) {}

  Response Ask(Request request) {
    request.set_request_id(++last_id_);
    Response response;
    EXPECT_TRUE(stream_->Write(request) && stream_->Read(&response)) << "the stream has ended";
    EXPECT_EQ(response.request_id(), last_id_);
    return response;
  }
  Stream& stream() { return *stream_; }
  grpc::Status Finish() {
    stream_->WritesDone();
    return stream_->Finish();
  }
  void Cancel() { context_->TryCancel(); }

 private:
  std::unique_ptr<grpc::ClientContext> context_ = NewContext();
  std::unique_ptr<Stream> stream_;
  std::uint64_t last_id_ = 0;
};

class Export : public Exchange<v1::ExportSessionRequest, v1::ExportSessionResponse> {
 public:
  explicit Export(ServerClient& server)
      : Exchange([&](auto* context) { return server.sessions().ExportSession(context); }) {}

  v1::ExportSessionResponse Begin(const v1::SessionHandle& handle,
                                  std::optional<std::int64_t> length = {},
                                  std::uint64_t archive_id = 0) {
    v1::ExportSessionRequest request;
    *request.mutable_begin()->mutable_handle() = handle;
    if (length) request.mutable_begin()->set_length(*length);
    request.mutable_begin()->set_archive_id(archive_id);
    return Ask(request);
  }
  v1::ExportSessionResponse Chunk(std::int64_t index) {
    v1::ExportSessionRequest request;
    request.set_chunk(index);
    return Ask(request);
  }
};

struct Archive {
  v1::SessionArchive description;
  std::vector<v1::ArchiveChunk> chunks;
};

Archive Read(ServerClient& server, const v1::SessionHandle& handle,
             std::optional<std::int64_t> length = {}) {
  Export stream(server);
  Archive archive;
  const v1::ExportSessionResponse begun = stream.Begin(handle, length);
  EXPECT_TRUE(begun.has_archive()) << begun.error().message();
  archive.description = begun.archive();
  for (std::int64_t i = 0; i < archive.description.num_chunks(); ++i) {
    const v1::ExportSessionResponse answer = stream.Chunk(i);
    EXPECT_TRUE(answer.has_chunk()) << answer.error().message();
    archive.chunks.push_back(answer.chunk());
  }
  EXPECT_TRUE(stream.Finish().ok());
  return archive;
}

class Import : public Exchange<v1::ImportSessionRequest, v1::ImportSessionResponse> {
 public:
  explicit Import(ServerClient& server)
      : Exchange([&](auto* context) { return server.sessions().ImportSession(context); }) {}

  v1::ImportSessionResponse Begin(const v1::SessionArchive& description,
                                  const std::string& name = "") {
    v1::ImportSessionRequest request;
    *request.mutable_begin()->mutable_archive() = description;
    request.mutable_begin()->set_name(name);
    return Ask(request);
  }
  v1::ImportSessionResponse Chunk(const v1::ArchiveChunk& chunk) {
    v1::ImportSessionRequest request;
    *request.mutable_chunk() = chunk;
    return Ask(request);
  }
  v1::ImportSessionResponse End() {
    v1::ImportSessionRequest request;
    request.mutable_end();
    return Ask(request);
  }
};

v1::Session Write(ServerClient& server, const Archive& archive, const std::string& name = "") {
  Import stream(server);
  v1::ImportSessionResponse answer = stream.Begin(archive.description, name);
  EXPECT_FALSE(answer.has_error()) << answer.error().message();
  for (const v1::ArchiveChunk& chunk : archive.chunks) {
    answer = stream.Chunk(chunk);
    EXPECT_EQ(answer.next_chunk(), chunk.index() + 1) << answer.error().message();
  }
  answer = stream.End();
  EXPECT_TRUE(answer.has_session()) << answer.error().message();
  EXPECT_TRUE(stream.Finish().ok());
  return answer.session();
}

class SessionArchiveTest : public ServiceFixture {};

class ArchivedTypesTest : public SessionArchiveTest,
                          public ::testing::WithParamInterface<v1::DType> {};

// Pages of another size on the other one.
TEST_P(ArchivedTypesTest, ASessionGoesOnOnAnotherServerWithTheSameBits) {
  TestServer other([](server::ServerConfig& config) { config.kv_page_size = 16; });
  const SessionSpec spec{.num_layers = 2, .kv_dtype = GetParam()};
  const v1::AttendRequest prompt = MakePrompt(kLength);
  const v1::SessionHandle source = MustFill(shared_server(), prompt, 200, spec);
  const Archive archive = Read(shared_server(), source);
  EXPECT_EQ(archive.description.length(), 200);
  const v1::Session moved = Write(other, archive, "moved");
  EXPECT_EQ(moved.name(), "moved");
  EXPECT_EQ(moved.committed_length(), 200);
  EXPECT_EQ(moved.geometry().kv_dtype(), GetParam());
  for (int layer = 0; layer < 2; ++layer) {
    const v1::SessionStepResult replayed =
        MustStep(other, MakeStep(prompt, moved.handle(), 150, 200, layer));
    EXPECT_TRUE(replayed.is_replay()) << "its rows are known";
    const v1::AttendResponse here =
        AsResponse(MustStep(shared_server(), MakeStep(prompt, source, 200, kLength, layer)));
    const v1::AttendResponse there =
        AsResponse(MustStep(other, MakeStep(prompt, moved.handle(), 200, kLength, layer)));
    EXPECT_TRUE(SameAnswer(here, there)) << layer;
  }
}

INSTANTIATE_TEST_SUITE_P(Types, ArchivedTypesTest,
                         ::testing::Values(v1::DTYPE_FLOAT32, v1::DTYPE_FLOAT16, v1::DTYPE_BFLOAT16,
                                           v1::DTYPE_INT8, v1::DTYPE_FLOAT8_E4M3));

TEST_F(SessionArchiveTest, AnArchiveIsTheSessionAsItWasWhateverComesAfter) {
  const v1::AttendRequest prompt = MakePrompt(kLength),
                          others = MakePrompt(kLength, v1::DTYPE_FLOAT32, 2);
  const v1::SessionHandle source = MustFill(shared_server(), prompt, 200);
  const Archive before = Read(shared_server(), source, 150);
  Export stream(shared_server());
  const v1::SessionArchive description =
      stream.Begin(source, 150, before.description.archive_id()).archive();
  v1::TruncateSessionRequest cut;
  *cut.mutable_handle() = source;
  cut.set_length(100);
  v1::TruncateSessionResponse cut_to;
  ASSERT_TRUE(shared_server().sessions().TruncateSession(NewContext().get(), cut, &cut_to).ok());
  MustStep(shared_server(), MakeAppend(others, source, 100, 200));
  ASSERT_TRUE(Delete(shared_server(), source).ok());
  ASSERT_EQ(description.SerializeAsString(), before.description.SerializeAsString());
  for (const v1::ArchiveChunk& chunk : before.chunks) {
    EXPECT_EQ(stream.Chunk(chunk.index()).chunk().SerializeAsString(), chunk.SerializeAsString());
  }
}

TEST_F(SessionArchiveTest, TokensThatWereLetGoStayAway) {
  const v1::AttendRequest prompt = MakePrompt(kLength);
  const v1::SessionHandle source = MustFill(shared_server(), prompt, 200);
  v1::KeepTokensRequest keep;
  *keep.mutable_handle() = source;
  keep.add_keep()->set_num_tokens(200);
  keep.mutable_keep(0)->set_kept(std::string(10, '\x0f') + std::string(15, '\xff'));
  v1::KeepTokensResponse kept;
  ASSERT_TRUE(shared_server().sessions().KeepTokens(NewContext().get(), keep, &kept).ok());
  const v1::Session copy = Write(shared_server(), Read(shared_server(), source));
  EXPECT_EQ(copy.committed_length(), 200);
  EXPECT_EQ(copy.layer_tokens(0), 160);
  EXPECT_EQ(RunStep(shared_server(), MakeStep(prompt, copy.handle(), 150, 160)).error().reason(),
            "TOKENS_DROPPED");
  const auto go_on = [&](const v1::SessionHandle& handle) {
    return AsResponse(MustStep(shared_server(), MakeStep(prompt, handle, 200, kLength)));
  };
  EXPECT_TRUE(SameAnswer(go_on(copy.handle()), go_on(source)));
}

TEST_F(SessionArchiveTest, AnEmptySessionIsAnArchiveToo) {
  const v1::SessionHandle source = MustCreate(shared_server(), {.num_layers = 3}).handle();
  const Archive archive = Read(shared_server(), source);
  EXPECT_TRUE(archive.chunks.empty());
  EXPECT_EQ(Write(shared_server(), archive).geometry().num_layers(), 3);
}

TEST_F(SessionArchiveTest, ExportsAreCheckedByField) {
  const v1::SessionHandle source = MustFill(shared_server(), MakePrompt(kLength), 50);
  Export stream(shared_server());
  EXPECT_THAT(stream.Chunk(0).error().message(),
              HasSubstr("before the archive has been described"));
  EXPECT_THAT(stream.Ask({}).error().message(), HasSubstr("request is missing"));
  EXPECT_EQ(stream.Begin(source, 51).error().reason(), "POSITION_MISMATCH");
  EXPECT_THAT(stream.Begin(source, -1).error().message(), HasSubstr("begin.length is -1"));
  v1::SessionHandle gone = source;
  gone.set_session_id("nobody");
  EXPECT_EQ(stream.Begin(gone).error().reason(), "SESSION_NOT_FOUND");
  ASSERT_TRUE(stream.Begin(source).has_archive()) << "nothing of that has ended the stream";
  EXPECT_THAT(stream.Begin(source).error().message(), HasSubstr("begin is there twice"));
  EXPECT_THAT(stream.Chunk(1).error().message(), HasSubstr("chunk is 1, expected 0 to 0"));
  EXPECT_TRUE(stream.Chunk(0).has_chunk());
}

// As an archive may be after it has lain on a disk.
TEST_F(SessionArchiveTest, DamagedAndForeignArchivesAreRefusedAndLeaveNothing) {
  const v1::SessionHandle source =
      MustFill(shared_server(), MakePrompt(kLength), 250, {.num_layers = 3});
  const Archive good = Read(shared_server(), source), other = Read(shared_server(), source);
  ASSERT_EQ(good.chunks.size(), 3u);
  const double used = shared_server().Metric("attention_kv_used_bytes");
  const auto refused = [&](const Archive& archive) {
    Import stream(shared_server());
    v1::ImportSessionResponse answer = stream.Begin(archive.description);
    for (const v1::ArchiveChunk& chunk : archive.chunks) {
      if (!answer.has_error()) answer = stream.Chunk(chunk);
    }
    if (!answer.has_error()) answer = stream.End();
    EXPECT_THAT(stream.End().error().message(), HasSubstr("the import has failed"));
    return answer.error();
  };
  const auto with = [&](auto change) {
    Archive archive = good;
    change(archive);
    return refused(archive);
  };
  EXPECT_THAT(with([](Archive& a) { a.description.set_format(2); }).message(),
              HasSubstr("begin.archive.format is 2, expected 1"));
  EXPECT_EQ(with([](Archive& a) { a.description.set_format(2); }).code(), grpc::UNIMPLEMENTED);
  EXPECT_THAT(with([](Archive& a) { a.description.clear_geometry(); }).message(),
              HasSubstr("geometry."));
  EXPECT_THAT(
      with([](Archive& a) { a.description.mutable_geometry()->set_num_kv_heads(0); }).message(),
      HasSubstr("geometry.num_kv_heads is 0"));
  EXPECT_THAT(with([](Archive& a) {
                a.description.mutable_geometry()->set_num_layers(0);
                a.description.clear_layers();
                a.description.set_num_chunks(0);
              }).message(),
              HasSubstr("geometry.num_layers is 0"));
  EXPECT_THAT(with([](Archive& a) { a.description.mutable_layers()->RemoveLast(); }).message(),
              HasSubstr("the number of archive.layers is 2, expected 3"));
  EXPECT_THAT(
      with([](Archive& a) { a.description.mutable_layers(1)->set_num_tokens(251); }).message(),
      HasSubstr("archive.layers[1].num_tokens is 251, expected 0 to 250"));
  EXPECT_THAT(
      with([](Archive& a) { a.description.mutable_layers(1)->set_num_tokens(249); }).message(),
      HasSubstr("archive.layers[1].compacted_length is 0, expected 1 to 250"));
  EXPECT_THAT(with([](Archive& a) { a.description.set_num_chunks(4); }).message(),
              HasSubstr("archive.num_chunks is 4, expected 3"));
  EXPECT_EQ(with([](Archive& a) {
              a.description.set_length(std::int64_t{1} << 39);
              for (auto& layer : *a.description.mutable_layers())
                layer.set_num_tokens(std::int64_t{1} << 39);
              a.description.set_num_chunks(std::int64_t{3} << 28);
            }).reason(),
            "KV_EXHAUSTED");
  EXPECT_THAT(with([](Archive& a) { std::swap(a.chunks[0], a.chunks[1]); }).message(),
              HasSubstr("chunk.index is 1, expected 0"));
  EXPECT_THAT(with([](Archive& a) { a.chunks.pop_back(); }).message(),
              HasSubstr("end comes after 2 chunks, expected it after all 3"));
  EXPECT_THAT(with([](Archive& a) { a.chunks.push_back(a.chunks[2]); }).message(),
              HasSubstr("expected none any more"));
  EXPECT_THAT(with([](Archive& a) { a.chunks[1].mutable_rows()->pop_back(); }).message(),
              HasSubstr("the size of chunk.rows is"));
  EXPECT_EQ(with([](Archive& a) { (*a.chunks[1].mutable_rows())[777] ^= 1; }).code(),
            grpc::DATA_LOSS);
  EXPECT_EQ(with([](Archive& a) { (*a.chunks[1].mutable_row_checksums())[7] ^= 1; }).code(),
            grpc::DATA_LOSS);
  EXPECT_EQ(with([&](Archive& a) { a.chunks[1] = other.chunks[1]; }).code(), grpc::DATA_LOSS)
      << "a chunk of another archive";
  EXPECT_TRUE(WaitUntil([&] { return shared_server().Metric("attention_kv_used_bytes") == used; }))
      << "the last stream's end may come after its answer";
  Write(shared_server(), good);
}

TEST_F(SessionArchiveTest, AnImportIsNoSessionBeforeItsEnd) {
  const Archive archive =
      Read(shared_server(), MustFill(shared_server(), MakePrompt(kLength), 250, {.num_layers = 2}));
  const double used = shared_server().Metric("attention_kv_used_bytes");
  const double sessions = shared_server().Metric("attention_sessions");
  {
    Import stream(shared_server());
    ASSERT_FALSE(stream.Begin(archive.description, "half").has_error());
    ASSERT_FALSE(stream.Chunk(archive.chunks[0]).has_error());
    EXPECT_EQ(shared_server().Metric("attention_sessions"), sessions);
    EXPECT_GT(shared_server().Metric("attention_kv_used_bytes"), used);
    stream.Cancel();
    stream.Finish();
  }
  EXPECT_TRUE(WaitUntil([&] { return shared_server().Metric("attention_kv_used_bytes") == used; }))
      << "a client that has gone leaves nothing";
  const v1::Session made = Write(shared_server(), archive, "half");
  Import again(shared_server());
  ASSERT_FALSE(again.Begin(archive.description, "half").has_error());
  for (const v1::ArchiveChunk& chunk : archive.chunks) again.Chunk(chunk);
  EXPECT_EQ(again.End().error().code(), grpc::ALREADY_EXISTS);
  EXPECT_EQ(MustGet(shared_server(), made.handle()).committed_length(), 250);
}

TEST_F(SessionArchiveTest, WhatComesAfterTheEndIsRefusedAndTheSessionStays) {
  const Archive archive =
      Read(shared_server(), MustFill(shared_server(), MakePrompt(kLength), 250));
  v1::ImportSessionRequest begin, chunk, end;
  *begin.mutable_begin()->mutable_archive() = archive.description;
  *chunk.mutable_chunk() = archive.chunks[0];
  end.mutable_end();
  Import stream(shared_server());
  // Sent ahead, so that the second end is there before the first has made the session.
  const std::vector<v1::ImportSessionRequest> requests = {begin, chunk, end, end, chunk, begin, {}};
  for (const v1::ImportSessionRequest& request : requests) stream.stream().Write(request);
  std::optional<v1::SessionHandle> made;
  int num_refused = 0;
  for (std::size_t i = 0; i < requests.size(); ++i) {
    v1::ImportSessionResponse answer;
    ASSERT_TRUE(stream.stream().Read(&answer)) << "the stream has ended";
    if (answer.has_session()) made = answer.session().handle();
    if (!answer.has_error()) continue;
    EXPECT_EQ(answer.error().code(), grpc::INVALID_ARGUMENT);
    EXPECT_THAT(answer.error().message(), HasSubstr("after end"));
    ++num_refused;
  }
  EXPECT_EQ(num_refused, 4);
  ASSERT_TRUE(made.has_value());
  EXPECT_EQ(MustGet(shared_server(), *made).committed_length(), 250);
}

TEST_F(SessionArchiveTest, TheSdkMovesASessionByAFile) {
  TestServer other;
  constexpr std::int64_t kTokens = 40, kElements = kTokens * 2 * 32;
  std::vector<float> rows(kElements);
  for (std::int64_t i = 0; i < kElements; ++i) rows[i] = static_cast<float>(i % 37) / 37;
  const client::TensorView tensor(std::span<const float>(rows), {kTokens, 2, 32});
  const auto here = shared_server().NewClient(), there = other.NewClient();
  client::SessionOptions options;
  options.geometry = {.num_layers = 1, .num_kv_heads = 2, .head_dim_qk = 32, .head_dim_v = 32};
  auto session = here->CreateSession(options);
  ASSERT_TRUE(session.ok()) << session.status();
  ASSERT_TRUE(session->Step(0, {}, tensor, tensor).ok());
  ASSERT_TRUE(session->Keep({{.tokens = {0, 1, 2, 30, 31, 39}}}).ok());
  EXPECT_EQ(session->num_held(0), 6);
  std::stringstream file;
  const absl::Status status = here->ExportSession({.handle = session->handle()}, file);
  ASSERT_TRUE(status.ok()) << status;
  auto moved = there->ImportSession({.name = "moved"}, file);
  ASSERT_TRUE(moved.ok()) << moved.status();
  EXPECT_EQ(moved->position(0), kTokens);
  const auto one = session->Step(0, tensor, tensor, tensor);
  const auto two = moved->Step(0, tensor, tensor, tensor);
  ASSERT_TRUE(one.ok() && two.ok()) << one.status() << two.status();
  EXPECT_EQ(one->output.bytes(), two->output.bytes());
  const auto read = moved->GetKeysValues(0, 0, 4);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->k.shape(), (client::Shape{4, 2, 32}));
}

}  // namespace
}  // namespace attention::testing
