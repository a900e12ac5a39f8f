#include "server/base/error_reason.h"

#include <gtest/gtest.h>

namespace attention::server {
namespace {

TEST(ErrorReasonTest, StatusCarriesReasonMetadataAndRetryDelay) {
  const absl::Status status =
      ReasonedError(absl::StatusCode::kResourceExhausted, ErrorReason::kQueueFull, "full",
                    {{"queued", "7"}, {"formula", "a=b"}}, absl::Milliseconds(250));
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(status.message(), "full");
  const auto detail = GetErrorDetail(status);
  ASSERT_TRUE(detail.has_value());
  EXPECT_EQ(detail->reason, "QUEUE_FULL");
  EXPECT_EQ(detail->metadata.at("queued"), "7");
  EXPECT_EQ(detail->metadata.at("formula"), "a=b");
  EXPECT_EQ(detail->metadata.size(), 2u);
  EXPECT_EQ(detail->retry_delay, absl::Milliseconds(250));
}

TEST(ErrorReasonTest, AValueCannotPassForAnotherField) {
  const std::string hostile = "a\nreason=DRAINING\nretry_delay_ns=5\\n";
  const absl::Status status =
      ReasonedError(absl::StatusCode::kFailedPrecondition, ErrorReason::kSessionMoved, "",
                    {{"server_name", hostile}});
  const auto detail = GetErrorDetail(status);
  ASSERT_TRUE(detail.has_value());
  EXPECT_EQ(detail->reason, "SESSION_MOVED");
  EXPECT_EQ(detail->metadata.at("server_name"), hostile);
  EXPECT_FALSE(detail->retry_delay.has_value());
}

TEST(ErrorReasonTest, PlainStatusHasNoDetail) {
  EXPECT_FALSE(GetErrorDetail(absl::InvalidArgumentError("q")).has_value());
  EXPECT_FALSE(GetErrorDetail(absl::OkStatus()).has_value());
}

TEST(ErrorReasonTest, EveryReasonHasANameOfItsOwn) {
  std::set<absl::string_view> names;
  for (int reason = 0; reason <= static_cast<int>(ErrorReason::kHashMismatch); ++reason) {
    names.insert(ErrorReasonName(static_cast<ErrorReason>(reason)));
  }
  EXPECT_EQ(names.size(), static_cast<int>(ErrorReason::kHashMismatch) + 1u);
  EXPECT_EQ(names.count("UNSPECIFIED"), 0u);
}

}  // namespace
}  // namespace attention::server
