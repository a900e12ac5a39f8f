#include "server/rpc/status_mapping.h"

#include <gtest/gtest.h>

#include "attention/v1/errors.pb.h"
#include "server/base/error_reason.h"

namespace attention::server {
namespace {

absl::Status QueueFull() {
  return ReasonedError(absl::StatusCode::kResourceExhausted, ErrorReason::kQueueFull, "full",
                       {{"queued", "9"}}, absl::Milliseconds(1500));
}

TEST(StatusMappingTest, DetailsAreGoogleRpcErrorInfoAndRetryInfo) {
  const grpc::Status status = ToGrpcStatus(QueueFull());
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(status.error_message(), "full");
  v1::StatusDetails details;
  ASSERT_TRUE(details.ParseFromString(status.error_details()));
  EXPECT_EQ(details.code(), 8);
  ASSERT_EQ(details.details_size(), 2);
  EXPECT_EQ(details.details(0).type_url(), "type.googleapis.com/google.rpc.ErrorInfo");
  v1::ErrorInfo info;
  ASSERT_TRUE(info.ParseFromString(details.details(0).value()));
  EXPECT_EQ(info.reason(), "QUEUE_FULL");
  EXPECT_EQ(info.domain(), "attention.v1");
  EXPECT_EQ(info.metadata().at("queued"), "9");
  EXPECT_EQ(details.details(1).type_url(), "type.googleapis.com/google.rpc.RetryInfo");
  v1::RetryInfo retry;
  ASSERT_TRUE(retry.ParseFromString(details.details(1).value()));
  EXPECT_EQ(retry.retry_delay().seconds(), 1);
  EXPECT_EQ(retry.retry_delay().nanos(), 500000000);
}

TEST(StatusMappingTest, EveryReasonIsAnEnumValueOfTheWire) {
  for (int reason = 0; reason <= static_cast<int>(ErrorReason::kPositionMismatch); ++reason) {
    const std::string name(ErrorReasonName(static_cast<ErrorReason>(reason)));
    v1::ErrorReason value;
    EXPECT_TRUE(v1::ErrorReason_Parse("ERROR_REASON_" + name, &value)) << name;
  }
}

TEST(StatusMappingTest, AStreamErrorSaysTheSame) {
  const v1::StreamError error = ToStreamError(QueueFull());
  EXPECT_EQ(error.code(), 8);
  EXPECT_EQ(error.message(), "full");
  EXPECT_EQ(error.reason(), "QUEUE_FULL");
  EXPECT_EQ(error.metadata().at("queued"), "9");
  EXPECT_EQ(error.retry_delay().seconds(), 1);
}

TEST(StatusMappingTest, WhateverAClientSaidTheTrailersFit) {
  const std::string words(5'000'000, '\n');
  const absl::Status status = ReasonedError(absl::StatusCode::kNotFound, ErrorReason::kSessionMoved,
                                            words, {{"server_name", words}});
  const grpc::Status sent = ToGrpcStatus(status);
  EXPECT_LT(sent.error_message().size() + sent.error_details().size(), 4000u);
  EXPECT_EQ(sent.error_message().find('\n'), std::string::npos);
  const v1::StreamError error = ToStreamError(status);
  EXPECT_LT(error.ByteSizeLong(), 2000u);
  EXPECT_EQ(error.metadata().at("server_name").find('\n'), std::string::npos);
}

TEST(StatusMappingTest, OkIsOk) { EXPECT_TRUE(ToGrpcStatus(absl::OkStatus()).ok()); }

}  // namespace
}  // namespace attention::server
