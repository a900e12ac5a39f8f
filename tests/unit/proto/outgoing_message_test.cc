// The bytes sent are those that protobuf would send; large tensors are sent from where they lie.
#include "proto/codec/outgoing_message.h"

#include <gmock/gmock.h>

#include <functional>

#include "attention/v1/attention_service.pb.h"
#include "attention/v1/session_service.pb.h"
#include "proto/codec/message_shape.h"
#include "tests/unit/proto/random_message.h"

namespace attention::codec {
namespace {

using google::protobuf::Message;
using google::protobuf::Reflection;

constexpr std::size_t kReferencedBytes = 512;

// Counts how often gRPC lets go of slices.
struct Releases {
  grpc::Slice Wrap(const std::string& data) {
    ++wrapped;
    return {const_cast<char*>(data.data()), data.size(),
            [](void* counter) { ++*static_cast<int*>(counter); }, &released};
  }
  int wrapped = 0;
  int released = 0;
};

// Takes the message apart the way its senders build one. Tensors' data stays in `message`.
OutgoingMessage Outgoing(const Message& message, Releases& releases) {
  const MessageShape& shape = MessageShape::Of(message.GetDescriptor());
  const Reflection* reflection = message.GetReflection();
  std::unique_ptr<Message> small_fields(message.New());
  small_fields->CopyFrom(message);
  if (shape.is_tensor) {
    auto* header = static_cast<v1::Tensor*>(small_fields.get());
    header->clear_data();
    return {*header, releases.Wrap(static_cast<const v1::Tensor&>(message).data())};
  }
  for (const auto& child : shape.children) {
    reflection->ClearField(small_fields.get(), child.field);
  }
  OutgoingMessage outgoing(*small_fields);
  for (const auto& child : shape.children) {
    if (!child.field->is_repeated()) {
      if (!reflection->HasField(message, child.field)) continue;
      outgoing.Add(child.field->number(),
                   Outgoing(reflection->GetMessage(message, child.field), releases));
      continue;
    }
    for (int i = 0; i < reflection->FieldSize(message, child.field); ++i) {
      outgoing.Add(child.field->number(),
                   Outgoing(reflection->GetRepeatedMessage(message, child.field, i), releases));
    }
  }
  return outgoing;
}

void ForEachRandomMessage(const std::function<void(const Message&)>& check) {
  Random random(1);
  for (int round = 0; round < 200; ++round) {
    for (const std::unique_ptr<Message>& type : TensorMessages()) {
      std::unique_ptr<Message> message(type->New());
      FillRandomly(message.get(), random);
      check(*message);
    }
  }
}

void ExpectSameMessage(const grpc::ByteBuffer& bytes, const Message& message) {
  std::unique_ptr<Message> parsed(message.New());
  ASSERT_TRUE(parsed->ParseFromString(Joined(bytes))) << message.GetTypeName();
  EXPECT_EQ(Canonical(*parsed), Canonical(message)) << message.GetTypeName();
}

TEST(OutgoingMessageTest, ProtobufReadsTheSameMessageOfExactlyTheSizeSaid) {
  ForEachRandomMessage([](const Message& message) {
    Releases releases;
    OutgoingMessage outgoing = Outgoing(message, releases);
    const std::size_t size = outgoing.size();
    EXPECT_EQ(size, message.ByteSizeLong());
    {
      const grpc::ByteBuffer bytes = std::move(outgoing).Serialize();
      EXPECT_EQ(bytes.Length(), size);
      ExpectSameMessage(bytes, message);
    }
    EXPECT_EQ(releases.released, releases.wrapped);
  });
}

TEST(OutgoingMessageTest, InOnePieceItIsTheSame) {
  ForEachRandomMessage([](const Message& message) {
    Releases releases;
    OutgoingMessage outgoing = Outgoing(message, releases);
    const std::size_t size = outgoing.size();
    const grpc::ByteBuffer bytes = std::move(outgoing).SerializeInOnePiece();
    EXPECT_EQ(bytes.Length(), size);
    ExpectSameMessage(bytes, message);
    std::vector<grpc::Slice> slices;
    ASSERT_TRUE(bytes.Dump(&slices).ok());
    EXPECT_EQ(slices.size(), 1u);
  });
}

TEST(OutgoingMessageTest, InOnePieceNothingIsReadLater) {
  std::string data(5000, 'a');
  v1::Tensor header;
  OutgoingMessage request{v1::AttendRequest()};
  request.Add(
      v1::AttendRequest::kQFieldNumber,
      OutgoingMessage(header, grpc::Slice(data.data(), data.size(), grpc::Slice::STATIC_SLICE)));
  const grpc::ByteBuffer bytes = std::move(request).SerializeInOnePiece();
  data.assign(data.size(), 'b');
  v1::AttendRequest parsed;
  ASSERT_TRUE(parsed.ParseFromString(Joined(bytes)));
  EXPECT_EQ(parsed.q().data(), std::string(5000, 'a'));
}

TEST(OutgoingMessageTest, DataIsReferencedFromTheSizeWhereThatIsCheaper) {
  for (const std::size_t size : {kReferencedBytes - 1, kReferencedBytes, kReferencedBytes + 1}) {
    const std::string data(size, 'd');
    Releases releases;
    OutgoingMessage response{v1::AttendResponse()};
    response.Add(v1::AttendResponse::kOutputFieldNumber,
                 OutgoingMessage(v1::Tensor(), releases.Wrap(data)));
    const bool is_copied = size < kReferencedBytes;
    EXPECT_EQ(response.copied_bytes(), is_copied ? size : 0);
    const grpc::ByteBuffer bytes = std::move(response).Serialize();
    std::vector<grpc::Slice> slices;
    ASSERT_TRUE(bytes.Dump(&slices).ok());
    const auto is_the_data = [&data](const grpc::Slice& slice) {
      return reinterpret_cast<const char*>(slice.begin()) == data.data();
    };
    EXPECT_EQ(std::count_if(slices.begin(), slices.end(), is_the_data), is_copied ? 0 : 1) << size;
    EXPECT_EQ(releases.released, is_copied ? 1 : 0) << "while the bytes may still be sent";
  }
}

TEST(OutgoingMessageTest, WhatIsNeverSentIsReleased) {
  const std::string data(1000, 'd');
  Releases releases;
  { const OutgoingMessage tensor(v1::Tensor(), releases.Wrap(data)); }
  EXPECT_EQ(releases.released, 1);
}

TEST(OutgoingMessageTest, AnEmptyMessageIsEmpty) {
  EXPECT_EQ(OutgoingMessage(v1::StepRequest()).Serialize().Length(), 0u);
  EXPECT_EQ(OutgoingMessage(v1::StepRequest()).SerializeInOnePiece().Length(), 0u);
}

}  // namespace
}  // namespace attention::codec
