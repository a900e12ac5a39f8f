// A received message means what protobuf's own parser says it means, however it was cut on the way.
#include "proto/codec/received_message.h"

#include <gmock/gmock.h>
#include <google/protobuf/stubs/logging.h>

#include <algorithm>
#include <new>

#include "attention/v1/attention_service.pb.h"
#include "attention/v1/session_service.pb.h"
#include "tests/fuzz/message_mutator.h"
#include "tests/support/failing_new.h"
#include "tests/unit/proto/random_message.h"

namespace attention::codec {
namespace {

using ::attention::testing::FailingAllocation;
using google::protobuf::Message;
using ::testing::HasSubstr;
using ::testing::StartsWith;

// The tag of a field: wire type 0 is a varint, 1 and 5 have eight and four bytes, 2 has a length.
std::string Tag(int number, int wire_type) {
  return {static_cast<char>(number << 3 | wire_type)};  // number < 16
}

std::string LengthDelimited(int number, const std::string& value) {
  return Tag(number, 2) + static_cast<char>(value.size()) + value;  // size < 128
}

// A Tensor with nothing but data.
std::string DataOnly(const std::string& data) { return LengthDelimited(3, data); }

absl::Status ParseInto(const grpc::ByteBuffer& bytes, Message* message) {
  ReceivedMessage received;
  absl::Status status = received.Parse(bytes, message);
  if (status.ok()) received.FillInData();
  return status;
}

absl::Status ParseInto(const std::string& bytes, Message* message) {
  Random random(1);
  return ParseInto(Cut(bytes, 7, random), message);
}

// Both parsers take the bytes, with the same outcome, or neither does. What one may refuse alone
// is a group. Returns whether they took them.
bool ExpectLikeProtobuf(const std::string& bytes, const Message& type, Random& random) {
  const google::protobuf::LogSilencer silencer;  // of strings that are no UTF-8
  std::unique_ptr<Message> expected(type.New()), actual(type.New());
  const bool is_expected = expected->ParseFromString(bytes);
  const absl::Status status = ParseInto(Cut(bytes, 1 + random() % 64, random), actual.get());
  if (is_expected && !status.ok()) {
    EXPECT_THAT(std::string(status.message()), HasSubstr("wire type 3")) << type.GetTypeName();
    return false;
  }
  EXPECT_EQ(status.ok(), is_expected) << type.GetTypeName() << " " << status;
  if (is_expected && status.ok()) {
    EXPECT_EQ(Canonical(*actual), Canonical(*expected)) << type.GetTypeName();
  }
  return is_expected;
}

// Each allocation fails in turn.
TEST(ReceivedMessageTest, AMessageThatMemoryIsOutForIsLetGo) {
  v1::StepRequest steps;
  for (int i = 0; i < 5; ++i) {
    v1::SessionStep& step = *steps.add_steps();
    for (v1::Tensor* tensor : {step.mutable_q(), step.mutable_k(), step.mutable_v()}) {
      tensor->set_data(std::string(100, 'x'));
    }
  }
  Random random(1);
  const grpc::ByteBuffer bytes = Cut(steps.SerializeAsString(), 64, random);
  v1::StepRequest first;  // makes what the library makes once
  ASSERT_TRUE(ParseInto(bytes, &first).ok());
  int num_failures = 0;
  for (bool has_failed = true; has_failed;) {
    const FailingAllocation failing(++num_failures);
    try {
      ReceivedMessage received;
      v1::StepRequest message;
      EXPECT_TRUE(received.Parse(bytes, &message).ok());
    } catch (const std::bad_alloc&) {
    }
    has_failed = failing.has_failed();
  }
  EXPECT_GT(num_failures, 15);
}

TEST(ReceivedMessageTest, EveryMessageComesBackHoweverItIsCut) {
  Random random(1);
  for (int round = 0; round < 100; ++round) {
    for (const std::unique_ptr<Message>& type : TensorMessages()) {
      std::unique_ptr<Message> message(type->New()), actual(type->New());
      FillRandomly(message.get(), random);
      const std::string bytes = message->SerializeAsString();
      for (const std::size_t max_piece : {std::size_t{1}, std::size_t{100}, bytes.size() + 1}) {
        actual->Clear();
        ASSERT_TRUE(ParseInto(Cut(bytes, max_piece, random), actual.get()).ok());
        ASSERT_EQ(Canonical(*actual), Canonical(*message)) << type->GetTypeName();
      }
    }
  }
}

TEST(ReceivedMessageTest, TheDataOfTensorsIsReadWhereItWasReceived) {
  v1::AttendRequest sent;
  sent.mutable_q()->set_data(std::string(1000, 'q'));
  sent.mutable_config()->mutable_alibi_slopes()->set_data("slopes");
  const std::string bytes = sent.SerializeAsString();
  const grpc::Slice slice(bytes);
  const grpc::ByteBuffer buffer(&slice, 1);
  v1::AttendRequest message;
  ReceivedMessage received;
  ASSERT_TRUE(received.Parse(buffer, &message).ok());
  EXPECT_EQ(received.size(), bytes.size());
  EXPECT_EQ(message.q().data(), "");
  const TensorBytes data = received.Data(message.q());
  ASSERT_EQ(data.pieces().size(), 1u);
  EXPECT_EQ(data.pieces()[0], sent.q().data());
  const auto* begin = reinterpret_cast<const char*>(slice.begin());
  EXPECT_GE(data.pieces()[0].data(), begin);
  EXPECT_LE(data.pieces()[0].data() + data.size(), begin + slice.size());
  EXPECT_EQ(received.Data(message.config().alibi_slopes()).pieces()[0], "slopes");
  EXPECT_EQ(received.Data(message.k()).size(), 0u) << "absent";
}

TEST(ReceivedMessageTest, TheDataOfATensorOfAnotherOriginIsItsField) {
  v1::Tensor tensor;
  tensor.set_data("own");
  EXPECT_EQ(ReceivedMessage().Data(tensor).pieces()[0], "own");
}

TEST(ReceivedMessageTest, AMessageMayBeReceivedAfterAnother) {
  Random random(1);
  ReceivedMessage received;
  for (const char* data : {"first", "second"}) {
    v1::AttendRequest message;
    ASSERT_TRUE(received.Parse(Cut(LengthDelimited(1, DataOnly(data)), 3, random), &message).ok());
    received.FillInData();
    EXPECT_EQ(message.q().data(), data);
  }
}

TEST(ReceivedMessageTest, FieldsMayComeInAnyOrderAndTwice) {
  Random random(2);
  for (int round = 0; round < 300; ++round) {
    for (const std::unique_ptr<Message>& type : TensorMessages()) {
      // Concatenated messages are merged messages.
      std::string bytes;
      for (int part = 0; part < 3; ++part) {
        std::unique_ptr<Message> message(type->New());
        FillRandomly(message.get(), random);
        bytes += message->SerializeAsString();
      }
      ASSERT_TRUE(ExpectLikeProtobuf(bytes, *type, random));
    }
  }
}

TEST(ReceivedMessageTest, TheLastDataCounts) {
  v1::AttendRequest message;
  ASSERT_TRUE(ParseInto(LengthDelimited(1, DataOnly("old") + DataOnly("new")) +
                            LengthDelimited(2, DataOnly("k")) + LengthDelimited(2, DataOnly("")),
                        &message)
                  .ok());
  EXPECT_EQ(message.q().data(), "new");
  EXPECT_EQ(message.k().data(), "");
}

// A oneof's later member deletes the earlier one, and its tensors with it.
TEST(ReceivedMessageTest, TheLastMemberOfAOneofCounts) {
  const std::string response = LengthDelimited(2, LengthDelimited(1, DataOnly("output")));
  const std::string weights = LengthDelimited(3, LengthDelimited(3, DataOnly("weights")));
  const std::string error = LengthDelimited(4, LengthDelimited(2, "why"));
  std::vector<std::string> members = {response, weights, error, response};
  std::sort(members.begin(), members.end());
  Random random(3);
  do {
    const std::string bytes = members[0] + members[1] + members[2] + members[3];
    EXPECT_TRUE(ExpectLikeProtobuf(bytes, v1::AttendStreamResponse(), random));
  } while (std::next_permutation(members.begin(), members.end()));
}

TEST(ReceivedMessageTest, UnknownFieldsOfEveryWireTypeAreKept) {
  const std::string unknown = Tag(15, 0) + "\x81\x01" + Tag(15, 1) + "12345678" +
                              LengthDelimited(15, "abc") + Tag(15, 5) + "1234";
  // A known field of another wire type is unknown, too.
  const std::string mistyped = Tag(1, 0) + "\x05" + Tag(3, 5) + "1234";
  Random random(4);
  for (const std::string& bytes :
       {unknown, mistyped, LengthDelimited(1, unknown + DataOnly("x") + mistyped) + unknown}) {
    EXPECT_TRUE(ExpectLikeProtobuf(bytes, v1::AttendRequest(), random));
  }
}

TEST(ReceivedMessageTest, GroupsAreRefusedBesideTensorsOnly) {
  const std::string group = Tag(15, 3) + Tag(15, 4);
  v1::AttendRequest message;
  ASSERT_TRUE(message.ParseFromString(group));
  const absl::Status status = ParseInto(group, &message);
  EXPECT_EQ(status.message(), "field 15 is malformed: wire type 3, expected 0, 1, 2 or 5");
  message.Clear();
  EXPECT_TRUE(ParseInto(LengthDelimited(10, group), &message).ok()) << "returns has no tensors";
  EXPECT_FALSE(message.ParseFromString(Tag(15, 4)));
  EXPECT_FALSE(ParseInto(Tag(15, 4), &message).ok());
}

TEST(ReceivedMessageTest, OverlongVarintsAreTakenAsProtobufTakesThem) {
  const std::string value = DataOnly("x");
  const auto overlong = [](char byte, int size) {
    std::string varint(1, static_cast<char>(byte | '\x80'));
    varint.append(static_cast<std::size_t>(size - 2), '\x80');
    return varint + '\0';
  };
  Random random(5);
  for (int size = 2; size <= 12; ++size) {
    const bool is_taken = size <= 5;
    const std::string tag = overlong('\x0a', size) + static_cast<char>(value.size()) + value;
    EXPECT_EQ(ExpectLikeProtobuf(tag, v1::AttendRequest(), random), is_taken) << size;
    const std::string length = Tag(1, 2) + overlong(static_cast<char>(value.size()), size) + value;
    EXPECT_EQ(ExpectLikeProtobuf(length, v1::AttendRequest(), random), is_taken) << size;
    const std::string number = Tag(15, 0) + overlong('\x01', size);
    EXPECT_EQ(ExpectLikeProtobuf(number, v1::AttendRequest(), random), size <= 10) << size;
  }
  // Bits of a tag beyond the 32nd are dropped.
  const std::string wide_tag = "\x8a\x80\x80\x80\x10";
  EXPECT_TRUE(ExpectLikeProtobuf(wide_tag + static_cast<char>(value.size()) + value,
                                 v1::AttendRequest(), random));
}

TEST(ReceivedMessageTest, EveryTruncationIsTakenAsProtobufTakesIt) {
  Random random(6);
  for (const std::unique_ptr<Message>& type : TensorMessages()) {
    std::unique_ptr<Message> message(type->New());
    while (message->ByteSizeLong() < 200) FillRandomly(message.get(), random);
    const std::string bytes = message->SerializeAsString();
    const std::size_t stride = 1 + bytes.size() / 1000;
    for (std::size_t size = 0; size < bytes.size(); size += stride) {
      ExpectLikeProtobuf(bytes.substr(0, size), *type, random);
    }
  }
}

TEST(ReceivedMessageTest, MutatedBytesAreTakenAsProtobufTakesThem) {
  Random random(7);
  int num_taken = 0, num_refused = 0;
  for (int round = 0; round < 2000; ++round) {
    for (const std::unique_ptr<Message>& type : TensorMessages()) {
      std::unique_ptr<Message> message(type->New());
      FillRandomly(message.get(), random);
      std::string bytes = message->SerializeAsString();
      for (unsigned i = 0; i < 1 + random() % 3; ++i) fuzz::MutateBytes(&bytes, random);
      ++(ExpectLikeProtobuf(bytes, *type, random) ? num_taken : num_refused);
    }
  }
  EXPECT_GT(num_taken, 1000);
  EXPECT_GT(num_refused, 1000);
}

TEST(ReceivedMessageTest, ErrorsNameTheField) {
  const auto error_of = [](const std::string& bytes) {
    v1::StepRequest message;
    const absl::Status status = ParseInto(bytes, &message);
    EXPECT_TRUE(absl::IsInvalidArgument(status));
    return std::string(status.message());
  };
  const std::string cut_data = Tag(3, 2) + "\x09" + "short";
  const std::string steps = LengthDelimited(1, "") + LengthDelimited(1, "");
  EXPECT_EQ(error_of(steps + LengthDelimited(1, LengthDelimited(6, cut_data))),
            "steps[2].q.data is malformed: its length is 9, expected at most the 5 bytes that are "
            "left");
  EXPECT_THAT(error_of(LengthDelimited(
                  1, LengthDelimited(8, LengthDelimited(7, LengthDelimited(2, "\xff"))))),
              StartsWith("steps[0].config.alibi_slopes is malformed: expected the fields of "));
  EXPECT_THAT(error_of(Tag(1, 2)), StartsWith("steps[0] is malformed: its length is cut off"));
  EXPECT_THAT(error_of(LengthDelimited(1, Tag(2, 0))), StartsWith("steps[0].field 2 is malformed"));
  EXPECT_THAT(error_of(std::string(1, '\0')), StartsWith("the message is malformed: field number"));
}

}  // namespace
}  // namespace attention::codec
