// The installed mock: a program tests its own use of the SDK. Prints "mock consumer: OK".
#include <attention/client/client.h>
#include <attention/client/mocks/mock_connection.h>
#include <gmock/gmock.h>

#include <cstdio>
#include <memory>

using namespace attention::client;  // NOLINT(google-build-using-namespace)

int main(int argc, char** argv) {
  testing::InitGoogleMock(&argc, argv);
  auto connection = std::make_shared<testing::NiceMock<MockConnection>>();
  EXPECT_CALL(*connection, GetServerInfo).WillOnce([](const CallOptions&, auto done) {
    done(ServerInfo{.version = "of the mock"});
  });
  Client client(connection);
  const auto info = client.GetServerInfo();
  if (!info.ok() || info->version != "of the mock") return 1;
  std::printf("mock consumer: OK\n");
  return 0;
}
