#include "server/shared_memory/region_table.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <sys/mman.h>
#include <unistd.h>

#include <memory>
#include <thread>

#include "server/base/error_reason.h"

namespace attention::server {
namespace {

using ::testing::HasSubstr;

constexpr std::int64_t kPage = 4096;

int MakeMemory(std::int64_t bytes, int seals = F_SEAL_SHRINK) {
  const int fd = memfd_create("region_table_test", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  EXPECT_GE(fd, 0);
  EXPECT_EQ(ftruncate(fd, bytes), 0);
  EXPECT_TRUE(seals == 0 || fcntl(fd, F_ADD_SEALS, seals) == 0);
  return fd;
}

std::string ReasonOf(const absl::Status& status) {
  const auto detail = GetErrorDetail(status);
  return detail ? detail->reason : "";
}

class RegionTableTest : public ::testing::Test {
 protected:
  RegionTable table_{{4 * kPage, 2}};
};

TEST_F(RegionTableTest, TheMemoryIsTheClients) {
  const int fd = MakeMemory(kPage);
  char* mine = static_cast<char*>(mmap(nullptr, kPage, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
  const auto id = table_.Register("a", fd);
  ASSERT_TRUE(id.ok()) << id.status();
  const auto region = table_.Find(*id, "a");
  ASSERT_TRUE(region.ok()) << region.status();
  mine[7] = 'x';
  EXPECT_EQ((*region)->data()[7], 'x');
  EXPECT_EQ((*region)->size(), kPage);
  munmap(mine, kPage);
}

TEST_F(RegionTableTest, PlacesOutsideAreOutside) {
  const auto id = table_.Register("a", MakeMemory(kPage));
  const auto region = *table_.Find(*id, "a");
  EXPECT_TRUE(region->Contains(0, kPage));
  EXPECT_TRUE(region->Contains(kPage, 0));
  EXPECT_FALSE(region->Contains(1, kPage));
  EXPECT_FALSE(region->Contains(-1, 1));
  EXPECT_FALSE(region->Contains(kPage + 1, 0));
  EXPECT_FALSE(region->Contains(0, -1));
  EXPECT_FALSE(region->Contains(INT64_MAX, INT64_MAX));
  EXPECT_FALSE(region->Contains(8, INT64_MAX));
}

TEST_F(RegionTableTest, OnlyItsTenantFindsIt) {
  const auto id = table_.Register("a", MakeMemory(kPage));
  const absl::Status status = table_.Find(*id, "b").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(ReasonOf(status), "REGION_NOT_FOUND");
  EXPECT_EQ(ReasonOf(table_.Find("", "a").status()), "REGION_NOT_FOUND");
}

TEST_F(RegionTableTest, AReleasedRegionStaysMappedForWhoUsesItAndCounts) {
  const auto id = table_.Register("a", MakeMemory(3 * kPage));
  auto region = *table_.Find(*id, "a");
  table_.Release(*id);
  EXPECT_EQ(ReasonOf(table_.Find(*id, "a").status()), "REGION_NOT_FOUND");
  region->data()[3 * kPage - 1] = 1;
  EXPECT_EQ(table_.num_regions(), 1);
  EXPECT_EQ(table_.bytes(), 3 * kPage);
  EXPECT_EQ(ReasonOf(table_.Register("a", MakeMemory(2 * kPage)).status()), "QUOTA_EXCEEDED");
  region.reset();
  EXPECT_EQ(table_.num_regions(), 0);
  EXPECT_EQ(table_.bytes(), 0);
  EXPECT_TRUE(table_.Register("a", MakeMemory(4 * kPage)).ok());
}

TEST_F(RegionTableTest, ARegionInUseOutlivesTheTable) {
  auto table = std::make_unique<RegionTable>(RegionTable::Limits{4 * kPage, 2});
  const auto region = *table->Find(*table->Register("a", MakeMemory(kPage)), "a");
  table.reset();
  region->data()[0] = 1;
}

TEST_F(RegionTableTest, LimitsAreEachTenants) {
  ASSERT_TRUE(table_.Register("a", MakeMemory(3 * kPage)).ok());
  EXPECT_EQ(ReasonOf(table_.Register("a", MakeMemory(2 * kPage)).status()), "QUOTA_EXCEEDED");
  const auto second = table_.Register("a", MakeMemory(kPage));
  ASSERT_TRUE(second.ok()) << second.status();
  const absl::Status third = table_.Register("a", MakeMemory(kPage)).status();
  EXPECT_EQ(ReasonOf(third), "QUOTA_EXCEEDED");
  EXPECT_THAT(std::string(third.message()), HasSubstr("2 regions"));
  EXPECT_TRUE(table_.Register("b", MakeMemory(4 * kPage)).ok());
  table_.Release(*second);
  EXPECT_TRUE(table_.Register("a", MakeMemory(kPage)).ok());
}

TEST_F(RegionTableTest, MemoryThatCouldGoAwayIsRefused) {
  const struct {
    int fd;
    const char* expected;
  } cases[] = {
      {MakeMemory(kPage, 0), "expected the seal F_SEAL_SHRINK"},
      {MakeMemory(kPage, F_SEAL_GROW), "expected the seal F_SEAL_SHRINK"},
      {MakeMemory(kPage - 1), "has 4095 bytes, expected 4096 to 16384"},
      {MakeMemory(5 * kPage), "has 20480 bytes, expected 4096 to 16384"},
      {open("/dev/null", O_RDWR | O_CLOEXEC), "has no seals"},
  };
  for (const auto& bad : cases) {
    const absl::Status status = table_.Register("a", bad.fd).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(bad.expected));
    EXPECT_EQ(fcntl(bad.fd, F_GETFD), -1) << "the descriptor is taken all the same";
  }
  EXPECT_EQ(table_.num_regions(), 0);
}

TEST_F(RegionTableTest, ThreadsRegisterFindAndReleaseAtOnce) {
  const auto work = [this](const std::string& tenant) {
    for (int i = 0; i < 200; ++i) {
      const auto id = table_.Register(tenant, MakeMemory(kPage));
      ASSERT_TRUE(id.ok()) << id.status();
      const auto region = table_.Find(*id, tenant);
      ASSERT_TRUE(region.ok()) << region.status();
      table_.Release(*id);
      (*region)->data()[0] = 1;
    }
  };
  std::thread first(work, "a");
  std::thread second(work, "b");
  first.join();
  second.join();
  EXPECT_EQ(table_.num_regions(), 0);
}

}  // namespace
}  // namespace attention::server
