#include "attention/client/errors.h"

#include <gmock/gmock.h>

#include "attention/v1/attention_service.pb.h"
#include "client/internal/convert/error_details.h"
#include "tests/unit/client/fake_server.h"

namespace attention::client {
namespace {

using ::testing::Eq;
using ::testing::Optional;

TEST(ErrorsTest, AStatusWithoutDetailsHasNone) {
  const absl::Status status = absl::NotFoundError("nothing here");
  EXPECT_EQ(ErrorReason(status), std::nullopt);
  EXPECT_EQ(ErrorMetadata(status, kServerName), std::nullopt);
  EXPECT_EQ(ActualPosition(status), std::nullopt);
  EXPECT_EQ(RetryDelay(status), std::nullopt);
  EXPECT_EQ(ErrorReason(absl::OkStatus()), std::nullopt);
}

TEST(ErrorsTest, ReasonAndMetadataAreReadBack) {
  const absl::Status status = WithReason(absl::FailedPreconditionError("gap"), kPositionMismatch,
                                         {{std::string(kActualPosition), "17"}});
  EXPECT_TRUE(absl::IsFailedPrecondition(status));
  EXPECT_THAT(ErrorReason(status), Optional(Eq(std::string(kPositionMismatch))));
  EXPECT_THAT(ActualPosition(status), Optional(17));
  EXPECT_EQ(ErrorMetadata(status, kServerName), std::nullopt);
}

TEST(ErrorsTest, AMalformedPositionIsNone) {
  const absl::Status status = WithReason(absl::FailedPreconditionError("gap"), kPositionMismatch,
                                         {{std::string(kActualPosition), "many"}});
  EXPECT_EQ(ActualPosition(status), std::nullopt);
}

TEST(ErrorsTest, DelayIsReadBack) {
  const absl::Status status =
      WithRetryDelay(absl::ResourceExhaustedError("full"), absl::Milliseconds(1250));
  EXPECT_THAT(RetryDelay(status), Optional(absl::Milliseconds(1250)));
}

TEST(ErrorsTest, OkStaysOk) {
  EXPECT_TRUE(WithReason(absl::OkStatus(), kQueueFull).ok());
  EXPECT_TRUE(WithRetryDelay(absl::OkStatus(), absl::Seconds(1)).ok());
}

TEST(ErrorsTest, GrpcStatusKeepsCodeMessageAndDetails) {
  const absl::Status status = internal::FromGrpcStatus(
      ServerError(grpc::StatusCode::RESOURCE_EXHAUSTED, "the queue is full", "QUEUE_FULL", "limit",
                  "8", absl::Milliseconds(2500)));
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(status.message(), "the queue is full");
  EXPECT_THAT(ErrorReason(status), Optional(Eq(std::string(kQueueFull))));
  EXPECT_THAT(ErrorMetadata(status, "limit"), Optional(Eq("8")));
  EXPECT_THAT(RetryDelay(status), Optional(absl::Milliseconds(2500)));
}

TEST(ErrorsTest, TheEnumsFullNameIsTheSameReason) {
  const absl::Status status = internal::FromGrpcStatus(
      ServerError(grpc::StatusCode::UNAVAILABLE, "bye", "ERROR_REASON_DRAINING"));
  EXPECT_THAT(ErrorReason(status), Optional(Eq(std::string(kDraining))));
}

TEST(ErrorsTest, GarbageInTheDetailsIsIgnored) {
  const absl::Status status = internal::FromGrpcStatus(
      grpc::Status(grpc::StatusCode::INTERNAL, "broken", "\xff\xff not a message"));
  EXPECT_EQ(status, absl::InternalError("broken"));
}

TEST(ErrorsTest, CodesOutsideTheCanonicalAreUnknown) {
  v1::StreamError error;  // an error without a code is one nevertheless
  EXPECT_EQ(internal::FromStreamError(error).code(), absl::StatusCode::kUnknown);
  error.set_code(99);
  EXPECT_EQ(internal::FromStreamError(error).code(), absl::StatusCode::kUnknown);
}

TEST(ErrorsTest, StreamErrorCarriesTheSame) {
  v1::StreamError error;
  error.set_code(8);
  error.set_message("the queue is full");
  error.set_reason("QUEUE_FULL");
  (*error.mutable_metadata())["limit"] = "8";
  error.mutable_retry_delay()->set_seconds(3);
  const absl::Status status = internal::FromStreamError(error);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(status.message(), "the queue is full");
  EXPECT_THAT(ErrorReason(status), Optional(Eq(std::string(kQueueFull))));
  EXPECT_THAT(ErrorMetadata(status, "limit"), Optional(Eq("8")));
  EXPECT_THAT(RetryDelay(status), Optional(absl::Seconds(3)));
}

TEST(ErrorsTest, AnnotateKeepsPayloads) {
  const absl::Status status =
      internal::Annotate(WithReason(absl::UnavailableError("bye"), kDraining), "4 attempts");
  EXPECT_EQ(status.message(), "bye (4 attempts)");
  EXPECT_THAT(ErrorReason(status), Optional(Eq(std::string(kDraining))));
}

}  // namespace
}  // namespace attention::client
