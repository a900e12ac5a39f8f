// A client registers shared memory for the tenant that the server knows it as, with its token.
#include <gmock/gmock.h>

#include "absl/synchronization/mutex.h"
#include "tests/unit/client/fake_server.h"
#include "tests/unit/client/fake_shared_memory_channel.h"

namespace attention::client {
namespace {

class SharedMemoryIdentityTest : public testing::Test {
 protected:
  SharedMemoryIdentityTest() {
    server_.on_get_server_info = [this](auto*, auto&, auto* response) {
      response->set_shared_memory_socket(channel_.path());
      response->set_server_epoch(FakeSharedMemoryChannel::kEpoch);
      response->set_tenant(tenant_of_calls_);
      return grpc::Status::OK;
    };
  }

  // The message by which a client with these options asks for memory.
  v1::CreateRegionRequest RegistrationOf(const ClientOptions& options) {
    const auto client = server_.Connect(options);
    EXPECT_TRUE(client->WaitUntilReady(absl::Seconds(60)).ok());
    EXPECT_TRUE(client->AllocateShared(DType::kFloat32, {1024}).ok());
    absl::MutexLock lock(&mutex_);
    EXPECT_GE(num_registrations_, 1);
    return last_;
  }

  absl::Mutex mutex_;
  int num_registrations_ = 0;
  v1::CreateRegionRequest last_;
  std::string tenant_of_calls_;
  FakeSharedMemoryChannel channel_{"identity",
                                   [this](const v1::SharedMemoryRequest& request, auto, auto*) {
                                     absl::MutexLock lock(&mutex_);
                                     ++num_registrations_;
                                     last_ = request.create();
                                   }};
  FakeServer server_;
};

TEST_F(SharedMemoryIdentityTest, TheServerSaysTheTenant) {
  tenant_of_calls_ = "acme";
  const auto sent = RegistrationOf({.token = {.value = "secret"}});
  EXPECT_EQ(sent.tenant(), "acme");
  EXPECT_EQ(sent.token(), "secret");
}

TEST_F(SharedMemoryIdentityTest, AServerThatDoesNotSayItIsTold) {
  const auto sent = RegistrationOf({.tenant = "acme"});
  EXPECT_EQ(sent.tenant(), "acme");
  EXPECT_EQ(sent.token(), "");
}

TEST_F(SharedMemoryIdentityTest, WithoutAnyItIsTheDefaultTenant) {
  const auto sent = RegistrationOf({});
  EXPECT_EQ(sent.tenant(), "");
  EXPECT_EQ(sent.token(), "");
}

}  // namespace
}  // namespace attention::client
