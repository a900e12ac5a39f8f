#include "server/shared_memory/region_table.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <thread>

#include "server/base/error_reason.h"

namespace attention::server {
namespace {

using ::testing::HasSubstr;

constexpr std::int64_t kPage = 4096;

std::string ReasonOf(const absl::Status& status) {
  const auto detail = GetErrorDetail(status);
  return detail ? detail->reason : "";
}

bool Eventually(const std::function<bool()>& condition) {
  for (int i = 0; i < 20000; ++i) {
    if (condition()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return false;
}

class RegionTableTest : public ::testing::Test {
 protected:
  // As a client gets it; the descriptor is left in `fd` if given.
  absl::StatusOr<std::string> Make(const std::string& tenant, std::int64_t bytes,
                                   const RegionTable::Owner& owner = {}, int* fd = nullptr) {
    auto charge = table_->Reserve(owner, bytes);
    if (!charge.ok()) return charge.status();
    auto region = SharedRegion::Create(bytes);
    EXPECT_TRUE(region.ok()) << region.status();
    while (!(*region)->is_populated()) EXPECT_TRUE((*region)->Populate(2 * kPage).ok());
    const int taken = (*region)->TakeFd();
    if (fd != nullptr) *fd = taken;
    if (fd == nullptr) close(taken);
    return table_->Add(tenant, *std::move(region), *std::move(charge));
  }

  std::unique_ptr<RegionTable> table_ =
      std::make_unique<RegionTable>(RegionTable::Limits{.max_bytes = 12 * kPage,
                                                        .max_bytes_per_user = 8 * kPage,
                                                        .max_bytes_per_connection = 4 * kPage,
                                                        .max_regions = 5,
                                                        .max_regions_per_connection = 2});
};

std::int64_t BytesInUse(int fd) {
  struct stat file {};
  EXPECT_EQ(fstat(fd, &file), 0);
  return std::int64_t{512} * file.st_blocks;
}

TEST_F(RegionTableTest, ClientAndServerSeeTheSameMemory) {
  int fd = -1;
  const auto id = Make("a", kPage, {}, &fd);
  ASSERT_TRUE(id.ok()) << id.status();
  char* mine = static_cast<char*>(mmap(nullptr, kPage, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
  const auto region = table_->Find(*id, "a");
  ASSERT_TRUE(region.ok()) << region.status();
  mine[7] = 'x';
  EXPECT_EQ((*region)->data()[7], 'x');
  EXPECT_EQ((*region)->size(), kPage);
  munmap(mine, kPage);
  close(fd);
}

TEST_F(RegionTableTest, AllPagesAreThereAndTheFileIsSealed) {
  int fd = -1;
  ASSERT_TRUE(Make("a", 3 * kPage + 1, {}, &fd).ok());
  EXPECT_EQ(BytesInUse(fd), 4 * kPage);
  EXPECT_NE(ftruncate(fd, kPage), 0);
  EXPECT_NE(ftruncate(fd, 5 * kPage), 0);
  EXPECT_EQ(fcntl(fd, F_GET_SEALS), F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
  close(fd);
}

TEST_F(RegionTableTest, PlacesOutsideAreOutside) {
  const auto id = Make("a", kPage);
  const auto region = *table_->Find(*id, "a");
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
  const auto id = Make("a", kPage);
  const absl::Status status = table_->Find(*id, "b").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(ReasonOf(status), "REGION_NOT_FOUND");
  EXPECT_EQ(ReasonOf(table_->Find("", "a").status()), "REGION_NOT_FOUND");
}

TEST_F(RegionTableTest, AReleasedRegionStaysForWhoUsesItAndCountsUntilItIsFreed) {
  int fd = -1;
  const auto id = Make("a", 3 * kPage, {}, &fd);
  auto region = *table_->Find(*id, "a");
  table_->Release(*id);
  EXPECT_EQ(ReasonOf(table_->Find(*id, "a").status()), "REGION_NOT_FOUND");
  region->data()[3 * kPage - 1] = 1;
  EXPECT_EQ(table_->num_regions(), 1);
  EXPECT_EQ(table_->bytes(), 3 * kPage);
  EXPECT_EQ(ReasonOf(Make("a", 2 * kPage).status()), "QUOTA_EXCEEDED");
  region.reset();
  EXPECT_TRUE(Eventually([&] { return table_->num_regions() == 0; }));
  EXPECT_EQ(table_->bytes(), 0);
  EXPECT_EQ(BytesInUse(fd), 0) << "though the client holds the file";
  EXPECT_TRUE(Make("a", 4 * kPage).ok());
  close(fd);
}

TEST_F(RegionTableTest, ARegionInUseOutlivesTheTable) {
  int fd = -1;
  const auto id = Make("a", kPage, {}, &fd);
  auto region = *table_->Find(*id, "a");
  table_.reset();
  region->data()[0] = 1;
  region.reset();
  EXPECT_EQ(BytesInUse(fd), 0);
  close(fd);
}

TEST_F(RegionTableTest, AtTheEndPagesAreLeftToClients) {
  int fd = -1;
  const auto id = Make("a", kPage, {}, &fd);
  table_->ReleaseAllAndKeepPages();
  EXPECT_EQ(ReasonOf(table_->Find(*id, "a").status()), "REGION_NOT_FOUND");
  EXPECT_TRUE(Eventually([&] { return table_->num_regions() == 0; }));
  EXPECT_EQ(BytesInUse(fd), kPage);
  close(fd);
}

TEST_F(RegionTableTest, ConnectionsUsersAndAllHaveLimitsAndTenantsDoNot) {
  const RegionTable::Owner first{.connection = 1, .user = 7}, second{.connection = 2, .user = 7};
  const RegionTable::Owner other{.connection = 3, .user = 8}, last{.connection = 4, .user = 9};
  ASSERT_TRUE(Make("a", 3 * kPage, first).ok());
  EXPECT_THAT(std::string(Make("b", 2 * kPage, first).status().message()),
              HasSubstr("the connection would have 20480 bytes of shared memory, expected at most "
                        "16384"));
  const auto small = Make("b", kPage, first);
  ASSERT_TRUE(small.ok()) << small.status();
  EXPECT_THAT(std::string(Make("c", kPage, first).status().message()),
              HasSubstr("the connection would have 3 regions"));
  ASSERT_TRUE(Make("a", 3 * kPage, second).ok());
  EXPECT_THAT(std::string(Make("a", 2 * kPage, second).status().message()),
              HasSubstr("the connection would have"));
  ASSERT_TRUE(Make("a", kPage, second).ok());
  EXPECT_THAT(
      std::string(Make("a", kPage, {.connection = 5, .user = 7}).status().message()),
      HasSubstr("the user would have 36864 bytes of shared memory, expected at most 32768"));
  ASSERT_TRUE(Make("a", 2 * kPage, other).ok());
  const absl::Status full = Make("a", kPage, last).status();
  EXPECT_EQ(ReasonOf(full), "QUOTA_EXCEEDED");
  EXPECT_THAT(std::string(full.message()), HasSubstr("would have 6 regions"));
  table_->Release(*small);
  EXPECT_TRUE(Eventually([&] { return Make("a", kPage, last).ok(); }));
}

TEST_F(RegionTableTest, ThreadsMakeFindAndReleaseAtOnce) {
  const auto work = [this](const std::string& tenant, std::uint64_t connection) {
    for (int i = 0; i < 200; ++i) {
      absl::StatusOr<std::string> id;
      // The one before may not be freed yet.
      ASSERT_TRUE(Eventually([&] {
        id = Make(tenant, kPage, {.connection = connection});
        return id.ok();
      })) << id.status();
      const auto region = table_->Find(*id, tenant);
      ASSERT_TRUE(region.ok()) << region.status();
      table_->Release(*id);
      (*region)->data()[0] = 1;
    }
  };
  std::thread first(work, "a", 1);
  std::thread second(work, "b", 2);
  first.join();
  second.join();
  EXPECT_TRUE(Eventually([&] { return table_->num_regions() == 0; }));
}

TEST(TurnWorkerTest, TasksTakeTurns) {
  std::atomic<bool> is_small_done{false}, may_begin{false};
  TurnWorker worker;
  AddTask(*worker.queue(), [&] {
    while (!may_begin) std::this_thread::yield();
    return is_small_done.load();  // never, if it had all the turns
  });
  AddTask(*worker.queue(), [&] {
    is_small_done = true;
    return true;
  });
  may_begin = true;
  EXPECT_TRUE(Eventually([&] { return is_small_done.load(); }));
}

TEST(TurnWorkerTest, ATaskThatMemoryIsOutForHasAnotherTurn) {
  std::atomic<int> turns = 0;
  TurnWorker worker;
  AddTask(*worker.queue(), [&] {
    if (++turns < 3) throw std::bad_alloc();
    return true;
  });
  EXPECT_TRUE(Eventually([&] { return turns == 3; }));
}

TEST(TurnWorkerTest, WhatIsThereIsCompletedAtTheEndAndWhatComesLaterAtOnce) {
  int turns = 0;
  const auto task = [&turns] { return ++turns % 3 == 0; };
  std::shared_ptr<TurnWorker::Queue> queue;
  {
    TurnWorker worker;
    queue = worker.queue();
    AddTask(*queue, task);
  }
  EXPECT_EQ(turns, 3);
  AddTask(*queue, task);
  EXPECT_EQ(turns, 6);
}

}  // namespace
}  // namespace attention::server
