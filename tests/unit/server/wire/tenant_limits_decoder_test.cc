#include "server/wire/tenant_limits_decoder.h"

#include <gmock/gmock.h>

#include <cmath>
#include <limits>

namespace attention::server {
namespace {

using ::testing::HasSubstr;

TEST(TenantLimitsDecoderTest, WhatAMessageLeavesOutStaysAsItWas) {
  const TenantLimits present{.kv_bytes = 5, .sessions = 6, .share = 2};
  v1::TenantLimits wire;
  EXPECT_EQ(*DecodeTenantLimits(wire, present), present);
  wire.set_sessions(0);
  TenantLimits expected = present;
  expected.sessions = 0;
  EXPECT_EQ(*DecodeTenantLimits(wire, present), expected);
}

TEST(TenantLimitsDecoderTest, MessagesSayAllThatLimitsCan) {
  const TenantLimits cases[] = {
      {},
      {.kv_bytes = 1,
       .layer_bytes = 2,
       .sessions = 3,
       .streams = 4,
       .queued_bytes = 5,
       .work_rate = 0.5,
       .share = 3,
       .highest_priority = Priority::kLow},
  };
  for (const TenantLimits& limits : cases) {
    v1::TenantLimits wire;
    EncodeTenantLimits(limits, &wire);
    EXPECT_EQ(*DecodeTenantLimits(wire, {}), limits);
  }
}

TEST(TenantLimitsDecoderTest, ALimitIsTakenAwayByItsLargestValue) {
  v1::TenantLimits wire;
  wire.set_kv_bytes(std::numeric_limits<std::int64_t>::max());
  wire.set_work_rate(std::numeric_limits<double>::infinity());
  EXPECT_EQ(*DecodeTenantLimits(wire, {.kv_bytes = 5, .work_rate = 1}), TenantLimits{});
}

TEST(TenantLimitsDecoderTest, WhatIsWrongIsNamed) {
  const auto error_of = [](auto change) {
    v1::TenantLimits wire;
    change(wire);
    const auto limits = DecodeTenantLimits(wire, {});
    EXPECT_EQ(limits.status().code(), absl::StatusCode::kInvalidArgument);
    return std::string(limits.status().message());
  };
  EXPECT_THAT(error_of([](auto& wire) { wire.set_streams(-1); }),
              HasSubstr("limits.streams is -1, expected at least 0"));
  EXPECT_THAT(error_of([](auto& wire) { wire.set_work_rate(0); }),
              HasSubstr("limits.work_rate is 0, expected 1e-06 to 1e+06"));
  EXPECT_THAT(error_of([](auto& wire) { wire.set_share(std::nan("")); }),
              HasSubstr("limits.share is nan, expected 0.001 to 1000"));
  EXPECT_THAT(error_of([](auto& wire) { wire.set_highest_priority("top\n"); }),
              HasSubstr("limits.highest_priority is 'top\\n', expected high, normal or low"));
}

}  // namespace
}  // namespace attention::server
