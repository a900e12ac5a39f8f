// Exports and imports of the SDK against a server that breaks off, and with archives that are none.
#include "client/internal/stream/archive_calls.h"

#include <gmock/gmock.h>

#include <sstream>
#include <string>
#include <vector>

#include "tests/unit/client/fake_server.h"

namespace attention::client {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr std::int64_t kChunks = 9;

void FillSession(v1::Session* session) {
  session->mutable_handle()->set_server_name("w");
  session->mutable_handle()->set_session_id("s");
  session->mutable_geometry()->set_num_layers(1);
  session->mutable_geometry()->set_kv_dtype(v1::DTYPE_FLOAT32);
}

class ArchiveCallsTest : public ::testing::Test {
 protected:
  ArchiveCallsTest() {
    server_.on_get_server_info = [](auto*, auto&, auto* response) {
      response->set_server_name("w");
      return grpc::Status::OK;
    };
    // Breaks off before the chunks that `breaks_` names.
    server_.on_export_session = [this](auto*, auto* stream) {
      v1::ExportSessionRequest request;
      while (stream->Read(&request)) {
        v1::ExportSessionResponse response;
        response.set_request_id(request.request_id());
        if (request.has_begin()) {
          begins_.push_back(request.begin());
          const std::uint64_t given = request.begin().archive_id();
          response.mutable_archive()->set_archive_id(given != 0 ? given : 77);
          response.mutable_archive()->set_length(length_);
          response.mutable_archive()->set_num_chunks(kChunks);
        } else {
          if (!breaks_.empty() && breaks_.back() == request.chunk()) {
            breaks_.pop_back();
            return grpc::Status(grpc::StatusCode::UNAVAILABLE, "gone");
          }
          response.mutable_chunk()->set_index(request.chunk());
          response.mutable_chunk()->set_rows("rows");
        }
        stream->Write(response);
      }
      return grpc::Status::OK;
    };
    // Takes what has come as it is.
    server_.on_import_session = [this](auto*, auto* stream) {
      v1::ImportSessionRequest request;
      while (stream->Read(&request)) {
        v1::ImportSessionResponse response;
        if (request.has_begin()) imported_name_ = request.begin().name();
        if (request.has_chunk()) imported_.push_back(request.chunk().index());
        if (request.has_end()) FillSession(response.mutable_session());
        if (request.has_chunk() && request.chunk().index() == refused_) {
          response.mutable_error()->set_code(grpc::StatusCode::DATA_LOSS);
          response.mutable_error()->set_message("damaged");
        }
        stream->Write(response);
      }
      return grpc::Status::OK;
    };
    ClientOptions options;
    options.retry_policy = {.max_attempts = 2, .initial_backoff = absl::Milliseconds(1)};
    client_ = server_.Connect(options);
  }

  absl::Status Export(std::ostream& archive) {
    return client_->ExportSession({.handle = {.server_name = "w", .session_id = "s"}}, archive);
  }
  std::string Exported() {
    std::ostringstream archive;
    EXPECT_TRUE(Export(archive).ok());
    return archive.str();
  }

  FakeServer server_;
  std::int64_t length_ = 100;
  std::vector<std::int64_t> breaks_;  // the next one at the end
  std::vector<v1::ExportBegin> begins_;
  std::string imported_name_;
  std::vector<std::int64_t> imported_;
  std::int64_t refused_ = -1;
  std::shared_ptr<Client> client_;
};

TEST_F(ArchiveCallsTest, AnExportThatBreaksOffGoesOnWhereItWas) {
  const std::string whole = Exported();
  begins_.clear();
  breaks_ = {8, 5, 3};
  EXPECT_EQ(Exported(), whole);
  ASSERT_EQ(begins_.size(), 4u);
  EXPECT_FALSE(begins_[0].has_length());
  EXPECT_EQ(begins_[1].length(), 100);
  EXPECT_EQ(begins_[3].archive_id(), 77u);
}

TEST_F(ArchiveCallsTest, AnExportEndsWithTheServersError) {
  breaks_ = {5, 5, 5};
  std::ostringstream archive;
  EXPECT_TRUE(absl::IsUnavailable(Export(archive))) << "the attempts are used up";
  server_.on_export_session = [](auto*, auto* stream) {
    v1::ExportSessionRequest request;
    stream->Read(&request);
    v1::ExportSessionResponse response;
    response.mutable_error()->set_code(grpc::StatusCode::NOT_FOUND);
    response.mutable_error()->set_reason("SESSION_NOT_FOUND");
    stream->Write(response);
    while (stream->Read(&request)) {
    }
    return grpc::Status::OK;
  };
  EXPECT_TRUE(absl::IsNotFound(Export(archive)));
}

TEST_F(ArchiveCallsTest, AChangedSessionIsNotMixedIntoOneArchive) {
  breaks_ = {4};
  server_.on_get_server_info = nullptr;
  std::ostringstream archive;
  const auto export_session = server_.on_export_session;
  server_.on_export_session = [&](auto* context, auto* stream) {
    if (!begins_.empty()) length_ = 99;
    return export_session(context, stream);
  };
  EXPECT_TRUE(absl::IsFailedPrecondition(Export(archive)));
}

TEST_F(ArchiveCallsTest, AnArchiveThatCannotBeWrittenIsTold) {
  std::ostringstream full;
  full.setstate(std::ios::badbit);
  EXPECT_TRUE(absl::IsDataLoss(Export(full)));
}

TEST_F(ArchiveCallsTest, ChunksAreImportedInTheirOrder) {
  std::istringstream archive(Exported());
  const auto session = client_->ImportSession({.name = "mine"}, archive);
  ASSERT_TRUE(session.ok()) << session.status();
  EXPECT_EQ(session->handle().session_id, "s");
  EXPECT_EQ(imported_name_, "mine");
  EXPECT_THAT(imported_, ElementsAre(0, 1, 2, 3, 4, 5, 6, 7, 8));
}

TEST_F(ArchiveCallsTest, AnImportEndsWithTheServersError) {
  std::istringstream archive(Exported());
  refused_ = 2;
  const absl::Status status = client_->ImportSession({}, archive).status();
  EXPECT_TRUE(absl::IsDataLoss(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("damaged"));
}

TEST_F(ArchiveCallsTest, WhatIsNoArchiveIsTold) {
  const std::string whole = Exported();
  for (const std::size_t length : {std::size_t{0}, whole.size() / 2, whole.size() - 1}) {
    std::istringstream archive(whole.substr(0, length));
    EXPECT_TRUE(absl::IsDataLoss(client_->ImportSession({}, archive).status())) << length;
  }
  std::istringstream other("this was written by somebody else");
  EXPECT_TRUE(absl::IsDataLoss(client_->ImportSession({}, other).status()));
}

}  // namespace
}  // namespace attention::client
