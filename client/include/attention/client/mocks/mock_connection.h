// A connection and a stream of expectations, for tests of programs that use the SDK.
//
//   auto connection = std::make_shared<attention::client::MockConnection>();
//   EXPECT_CALL(*connection, Attend).WillOnce([](const auto&, const auto&, auto done) {
//     done(absl::UnavailableError("no server today"));
//   });
//   attention::client::Client client(connection);
//
// Needs gmock, which the library itself does not.
#pragma once

#include <gmock/gmock.h>

#include <memory>
#include <vector>

#include "attention/client/connection.h"

namespace attention::client {

class MockConnection : public Connection {
 public:
  MOCK_METHOD(void, Attend, (const AttendRequest&, const CallOptions&, Callback<AttendResult>),
              (override));
  MOCK_METHOD(void, AttendWithWeights,
              (const AttendRequest&, const CallOptions&, WeightsCallback, Callback<AttendResult>),
              (override));
  MOCK_METHOD(void, CreateSession,
              (const SessionOptions&, const CallOptions&, Callback<SessionInfo>), (override));
  MOCK_METHOD(void, GetSession, (const SessionHandle&, const CallOptions&, Callback<SessionInfo>),
              (override));
  MOCK_METHOD(void, ListSessions,
              (const ListSessionsRequest&, const CallOptions&, Callback<ListSessionsResult>),
              (override));
  MOCK_METHOD(void, DeleteSession, (const SessionHandle&, const CallOptions&, StatusCallback),
              (override));
  MOCK_METHOD(void, ForkSession,
              (const ForkSessionRequest&, const CallOptions&, Callback<std::vector<SessionInfo>>),
              (override));
  MOCK_METHOD(void, TruncateSession,
              (const TruncateSessionRequest&, const CallOptions&, Callback<SessionInfo>),
              (override));
  MOCK_METHOD(void, KeepTokens,
              (const KeepTokensRequest&, const CallOptions&, Callback<SessionInfo>), (override));
  MOCK_METHOD(void, GetKeysValues,
              (const GetKeysValuesRequest&, const CallOptions&, Callback<KeysValues>), (override));
  MOCK_METHOD(absl::Status, ExportSession,
              (const ExportSessionRequest&, const CallOptions&, std::ostream&), (override));
  MOCK_METHOD(absl::StatusOr<SessionInfo>, ImportSession,
              (const ImportSessionRequest&, const CallOptions&, std::istream&), (override));
  MOCK_METHOD(void, AttachSession,
              (const SessionHandle&, const CallOptions&, Callback<SessionInfo>), (override));
  MOCK_METHOD(void, ReorderSessions,
              (const ReorderSessionsRequest&, const CallOptions&,
               Callback<std::vector<SessionInfo>>),
              (override));
  MOCK_METHOD(void, Step, (const StepRequest&, const CallOptions&, Callback<StepResult>),
              (override));
  MOCK_METHOD(void, CreateLayer, (const LayerOptions&, const CallOptions&, Callback<LayerInfo>),
              (override));
  MOCK_METHOD(void, GetLayer, (const std::string&, const CallOptions&, Callback<LayerInfo>),
              (override));
  MOCK_METHOD(void, ListLayers,
              (const ListLayersRequest&, const CallOptions&, Callback<ListLayersResult>),
              (override));
  MOCK_METHOD(void, DeleteLayer, (const std::string&, const CallOptions&, StatusCallback),
              (override));
  MOCK_METHOD(void, ConvertLayer,
              (const ConvertLayerRequest&, const CallOptions&, Callback<LayerInfo>), (override));
  MOCK_METHOD(void, Forward, (const ForwardRequest&, const CallOptions&, Callback<ForwardResult>),
              (override));
  MOCK_METHOD(void, GetServerInfo, (const CallOptions&, Callback<ServerInfo>), (override));
  MOCK_METHOD(void, Explain, (const ExplainRequest&, const CallOptions&, Callback<ExplainResult>),
              (override));
  MOCK_METHOD(absl::StatusOr<std::unique_ptr<StepStream>>, OpenStepStream,
              (const StepStreamOptions&), (override));
  MOCK_METHOD(absl::Status, WaitUntilReady, (absl::Time), (override));
  // AllocateShared and shared_memory_usage are Connection's own: memory of this process.
};

class MockStepStream : public StepStream {
 public:
  MOCK_METHOD(void, StepAsync, (const StepRequest&, Callback), (override));
  MOCK_METHOD(void, CreateSessionAsync, (const SessionOptions&, SessionCallback), (override));
  MOCK_METHOD(absl::Status, Finish, (), (override));
  MOCK_METHOD(void, Cancel, (), (override));
  MOCK_METHOD(absl::Status, status, (), (const, override));
};

}  // namespace attention::client
