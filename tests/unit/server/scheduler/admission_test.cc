#include "server/scheduler/admission.h"

#include <gmock/gmock.h>

#include "server/base/error_reason.h"
#include "server/domain/tenant_limits.h"

namespace attention::server {
namespace {

using ::testing::HasSubstr;

constexpr QueueLimits kLimits{100, 1000};
constexpr absl::Duration kForever = absl::InfiniteDuration();

TEST(AdmissionTest, LimitsOfRequestsAndBytes) {
  struct Case {
    const char* name;
    QueueLoad all;
    QueueLoad tenant;
    std::int64_t bytes;
    bool is_admitted;
  };
  const Case kCases[] = {
      {"empty", {0, 0, {}}, {0, 0, {}}, 10, true},
      {"as large as the limit, alone", {0, 0, {}}, {0, 0, {}}, 1000, true},
      {"as large as the limit, not alone", {1, 1, {}}, {0, 0, {}}, 1000, false},
      {"full of requests", {100, 0, {}}, {0, 0, {}}, 10, false},
      {"the last free place, for one who holds none", {99, 0, {}}, {0, 0, {}}, 10, true},
      {"full of bytes", {10, 1000, {}}, {0, 0, {}}, 1, false},
      {"exactly the bytes that are left", {10, 900, {}}, {0, 0, {}}, 100, true},
      {"one more than the bytes that are left", {10, 900, {}}, {0, 0, {}}, 101, false},
      {"a flood, below four times of what is free", {79, 0, {}}, {79, 0, {}}, 1, true},
      {"a flood, at four times of what is free", {80, 0, {}}, {80, 0, {}}, 1, false},
      {"another beside the flood", {80, 0, {}}, {0, 0, {}}, 1, true},
      {"a flood of bytes", {5, 800, {}}, {5, 800, {}}, 1, false},
      {"another beside the flood of bytes", {5, 800, {}}, {0, 0, {}}, 100, true},
  };
  for (const Case& c : kCases) {
    const absl::Status status = CheckAdmission({c.all, c.tenant}, kLimits, c.bytes, kForever);
    EXPECT_EQ(status.ok(), c.is_admitted) << c.name << ": " << status;
    if (!status.ok()) {
      EXPECT_EQ(GetErrorDetail(status)->reason, "QUEUE_FULL") << c.name;
    }
  }
}

TEST(AdmissionTest, ARequestLargerThanTheLimitIsRefusedByAnEmptyQueueToo) {
  const absl::Status status = CheckAdmission({}, kLimits, 1001, kForever);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << "a retry would not help";
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("takes 1001 bytes with its results, expected at most 1000"));
}

TEST(AdmissionTest, ARefusalTellsNothingOfOthersLoad) {
  const absl::Status full = CheckAdmission({{100, 777, {}}, {3, 55, {}}}, kLimits, 1, kForever);
  EXPECT_THAT(std::string(full.message()), HasSubstr("the tenant's in it are 3"));
  const absl::Status bytes = CheckAdmission({{10, 777, {}}, {3, 55, {}}}, kLimits, 500, kForever);
  EXPECT_THAT(std::string(bytes.message()), HasSubstr("the tenant's in it are 55"));
  for (const absl::Status& status : {full, bytes}) {
    EXPECT_THAT(std::string(status.message()), ::testing::Not(HasSubstr("777")));
  }
}

TEST(AdmissionTest, NoNumberOfFloodingTenantsShutsOutANewcomer) {
  for (int num_floods = 1; num_floods <= 10; ++num_floods) {
    std::vector<std::int64_t> held(num_floods);
    std::int64_t all = 0;
    for (int round = 0; round < 200; ++round) {
      for (std::int64_t& tenant : held) {
        if (!CheckAdmission({{all, 0, {}}, {tenant, 0, {}}}, kLimits, 1, kForever).ok()) continue;
        ++tenant;
        ++all;
      }
    }
    EXPECT_GE(all, 70) << "most of the queue is used";
    EXPECT_TRUE(CheckAdmission({{all, 0, {}}, {0, 0, {}}}, kLimits, 1, kForever).ok())
        << num_floods << " tenants hold " << all;
  }
}

TEST(AdmissionTest, TheWaitIsTheTenantsOwnWorkAtItsShareOrEverything) {
  const QueueLoad all{50, 0, absl::Seconds(8)};
  const QueueLoad tenant{10, 0, absl::Seconds(1)};
  EXPECT_EQ(ExpectedWait({all, tenant, 0.25, 1}), absl::Seconds(4));
  EXPECT_EQ(ExpectedWait({all, tenant, 0.25, 2}), absl::Seconds(2));
  EXPECT_EQ(ExpectedWait({all, tenant, 0.01, 1}), absl::Seconds(8));
  EXPECT_EQ(ExpectedWait({all, tenant, 0.25, 0}), absl::ZeroDuration()) << "the rate is unknown";
}

TEST(AdmissionTest, ARequestWhoseTurnCannotComeInTimeIsRefusedAtOnce) {
  const QueueView view{{50, 0, absl::Seconds(8)}, {10, 0, absl::Seconds(1)}, 0.25, 1};
  EXPECT_TRUE(CheckAdmission(view, kLimits, 1, absl::Seconds(4)).ok());
  const absl::Status status = CheckAdmission(view, kLimits, 1, absl::Milliseconds(3900));
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("would wait 4s"));
  EXPECT_EQ(GetErrorDetail(status)->retry_delay, absl::Seconds(4));
}

TEST(AdmissionTest, ATenantHasItsOwnBoundOfBytes) {
  constexpr absl::Duration kDelay = absl::Milliseconds(7);
  EXPECT_TRUE(CheckTenantBytes("a", 900, 100, 1000, kDelay).ok());
  EXPECT_TRUE(CheckTenantBytes("a", 900, 100, TenantLimits::kNone, kDelay).ok());
  const absl::Status later = CheckTenantBytes("a", 900, 101, 1000, kDelay);
  EXPECT_EQ(GetErrorDetail(later)->reason, "QUOTA_EXCEEDED");
  EXPECT_EQ(GetErrorDetail(later)->retry_delay, kDelay);
  EXPECT_THAT(std::string(later.message()),
              HasSubstr("tenant 'a' holds 900 bytes that wait for a device, and 101 more would "
                        "exceed its limit queued-bytes (1000)"));
  EXPECT_EQ(GetErrorDetail(CheckTenantBytes("a", 0, 1001, 1000, kDelay))->retry_delay, std::nullopt)
      << "waiting does not help";
}

TEST(RetryDelayTest, IsTheTimeToWorkOffWhatIsInTheWayWithinBounds) {
  EXPECT_EQ(RetryDelay(absl::Milliseconds(250), 0.5), absl::Milliseconds(500));
  EXPECT_EQ(RetryDelay(absl::Microseconds(1), 1), absl::Milliseconds(1));
  EXPECT_EQ(RetryDelay(absl::Hours(1), 1), absl::Seconds(10));
  EXPECT_EQ(RetryDelay(absl::Hours(1), 0), absl::Milliseconds(100)) << "the rate is unknown";
}

}  // namespace
}  // namespace attention::server
