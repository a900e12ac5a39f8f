#include "proto/codec/received_message.h"

#include <deque>
#include <memory>
#include <string>
#include <utility>

#include "absl/container/inlined_vector.h"
#include "absl/strings/str_cat.h"
#include "proto/codec/message_shape.h"
#include "proto/codec/slice_reader.h"

namespace attention::codec {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

enum WireType { kVarint = 0, kFixed64 = 1, kLengthDelimited = 2, kFixed32 = 5 };

// The most bytes that protobuf's parser takes for a tag or a length.
constexpr int kMaxTagBytes = 5;
constexpr int kMaxLengthBytes = 5;

void AppendVarint(std::uint64_t value, std::string* out) {
  for (; value >= 0x80; value >>= 7) out->push_back(static_cast<char>(value | 0x80));
  out->push_back(static_cast<char>(value));
}

}  // namespace

// Walks the wire format of one message. Fields that lead to no tensor are gathered as they are and
// given to protobuf's parser.
class MessageParser {
 public:
  MessageParser(SliceReader& reader, ReceivedMessage& received)
      : reader_(reader), received_(received) {}

  // Parses the next `size` bytes.
  absl::Status Parse(const MessageShape& shape, std::size_t size, Message* message) {
    const std::size_t end = reader_.remaining() - size;
    // Each level of messages inside messages has a string of its own, which keeps its memory.
    if (small_fields_.size() <= path_.size()) small_fields_.emplace_back();
    std::string& small_fields = small_fields_[path_.size()];
    small_fields.clear();
    while (reader_.remaining() > end) {
      if (absl::Status status = ParseField(shape, end, message, &small_fields); !status.ok()) {
        return status;
      }
    }
    if (reader_.remaining() < end) return Malformed("a field goes beyond its message's end");
    if (small_fields.empty() || message->MergeFromString(small_fields)) return absl::OkStatus();
    return Malformed(absl::StrCat("expected the fields of ", message->GetTypeName()));
  }

 private:
  // AddMessage of protobuf makes the message before the room for it, and loses it when memory is
  // out for that.
  static Message* Add(const MessageShape::Child& child, Message* message) {
    std::unique_ptr<Message> added(child.shape->prototype->New());
    message->GetReflection()->AddAllocatedMessage(message, child.field, added.get());
    return added.release();
  }

  // The parser's position: "steps[2].q", followed by `inner` if given.
  std::string Name(absl::string_view inner) const {
    std::string name;
    for (const auto& [field, index] : path_) {
      absl::StrAppend(&name, name.empty() ? "" : ".", field->name());
      if (index >= 0) absl::StrAppend(&name, "[", index, "]");
    }
    if (!inner.empty()) absl::StrAppend(&name, name.empty() ? "" : ".", inner);
    return name.empty() ? "the message" : name;
  }

  absl::Status Malformed(absl::string_view what, absl::string_view inner = "") const {
    return absl::InvalidArgumentError(absl::StrCat(Name(inner), " is malformed: ", what));
  }

  // Bytes that are left of the message that ends when `end` remain.
  std::size_t Left(std::size_t end) const {
    return reader_.remaining() < end ? 0 : reader_.remaining() - end;
  }

  absl::Status ParseField(const MessageShape& shape, std::size_t end, Message* message,
                          std::string* small_fields) {
    std::uint64_t varint = 0;
    if (!reader_.ReadVarint(kMaxTagBytes, &varint)) return Malformed("a field's tag is cut off");
    const auto tag = static_cast<std::uint32_t>(varint);  // protobuf drops the bits above, too
    const auto number = static_cast<int>(tag >> 3);
    if (number == 0) {
      return Malformed(absl::StrCat("field number 0, expected 1 to ", FieldDescriptor::kMaxNumber));
    }
    const int type = static_cast<int>(tag & 7);
    if (type == kLengthDelimited) {
      const MessageShape::Child* child = shape.Find(number);
      if (child != nullptr) return ParseChild(*child, end, message);
      if (shape.is_tensor && number == v1::Tensor::kDataFieldNumber) {
        return ParseData(end, static_cast<v1::Tensor*>(message));
      }
    }
    AppendVarint(tag, small_fields);
    return CopyValue(type, number, end, small_fields);
  }

  absl::Status ReadLength(std::size_t end, absl::string_view inner, std::size_t* length) {
    std::uint64_t value = 0;
    if (!reader_.ReadVarint(kMaxLengthBytes, &value)) {
      return Malformed("its length is cut off", inner);
    }
    *length = Left(end);
    if (value > *length) {
      return Malformed(absl::StrCat("its length is ", value, ", expected at most the ", *length,
                                    " bytes that are left"),
                       inner);
    }
    *length = static_cast<std::size_t>(value);
    return absl::OkStatus();
  }

  absl::Status ParseChild(const MessageShape::Child& child, std::size_t end, Message* message) {
    const google::protobuf::Reflection* reflection = message->GetReflection();
    const bool is_repeated = child.field->is_repeated();
    path_.emplace_back(child.field,
                       is_repeated ? reflection->FieldSize(*message, child.field) : -1);
    std::size_t length = 0;
    absl::Status status = ReadLength(end, "", &length);
    if (status.ok()) {
      if (!is_repeated) ForgetRivals(child, *message);
      Message* inner =
          is_repeated ? Add(child, message) : reflection->MutableMessage(message, child.field);
      status = Parse(*child.shape, length, inner);
    }
    path_.pop_back();
    return status;
  }

  // Setting a member of a oneof deletes the one that was set before, tensors and all.
  void ForgetRivals(const MessageShape::Child& child, const Message& message) {
    const google::protobuf::OneofDescriptor* oneof = child.field->real_containing_oneof();
    if (oneof == nullptr) return;
    const google::protobuf::Reflection* reflection = message.GetReflection();
    const FieldDescriptor* present = reflection->GetOneofFieldDescriptor(message, oneof);
    if (present != nullptr && present != child.field) {
      Forget(reflection->GetMessage(message, present));
    }
  }

  // Drops the data of every tensor in the message.
  void Forget(const Message& message) {
    const MessageShape& shape = MessageShape::Of(message.GetDescriptor());
    if (shape.is_tensor) received_.data_.erase(static_cast<const v1::Tensor*>(&message));
    const google::protobuf::Reflection* reflection = message.GetReflection();
    for (const MessageShape::Child& child : shape.children) {
      if (!child.field->is_repeated()) {
        if (reflection->HasField(message, child.field)) {
          Forget(reflection->GetMessage(message, child.field));
        }
        continue;
      }
      for (int i = 0; i < reflection->FieldSize(message, child.field); ++i) {
        Forget(reflection->GetRepeatedMessage(message, child.field, i));
      }
    }
  }

  absl::Status ParseData(std::size_t end, v1::Tensor* tensor) {
    std::size_t length = 0;
    if (absl::Status status = ReadLength(end, "data", &length); !status.ok()) return status;
    TensorBytes bytes;
    reader_.View(length, &bytes);
    received_.data_[tensor] = {tensor, std::move(bytes)};
    return absl::OkStatus();
  }

  absl::Status CopyValue(int type, int number, std::size_t end, std::string* out) {
    std::size_t length = 0;
    switch (type) {
      case kVarint:
        if (reader_.AppendVarintTo(out)) return absl::OkStatus();
        return Malformed("its number is cut off", absl::StrCat("field ", number));
      case kFixed64:
        length = 8;
        break;
      case kFixed32:
        length = 4;
        break;
      case kLengthDelimited: {
        const absl::Status status = ReadLength(end, absl::StrCat("field ", number), &length);
        if (!status.ok()) return status;
        AppendVarint(length, out);
        break;
      }
      default:
        return Malformed(absl::StrCat("wire type ", type, ", expected 0, 1, 2 or 5"),
                         absl::StrCat("field ", number));
    }
    if (length > Left(end) || !reader_.AppendTo(length, out)) {
      return Malformed("it is cut off", absl::StrCat("field ", number));
    }
    return absl::OkStatus();
  }

  SliceReader& reader_;
  ReceivedMessage& received_;
  // The fields that lead to the present message, with the index in a repeated one or -1.
  absl::InlinedVector<std::pair<const FieldDescriptor*, int>, 4> path_;
  // The fields of each level of the path that are left to protobuf's parser. A deque: a level may
  // be added while those above are in use.
  std::deque<std::string> small_fields_;
};

absl::Status ReceivedMessage::Parse(const grpc::ByteBuffer& buffer, Message* message) {
  Release();
  size_ = buffer.Length();
  buffer_ = buffer;
  if (!buffer.Dump(&slices_).ok()) {
    return absl::InvalidArgumentError("the message is malformed: it cannot be decompressed");
  }
  SliceReader reader(slices_);
  return MessageParser(reader, *this)
      .Parse(MessageShape::Of(message->GetDescriptor()), reader.remaining(), message);
}

TensorBytes ReceivedMessage::Data(const v1::Tensor& tensor) const {
  const auto it = data_.find(&tensor);
  return it != data_.end() ? it->second.bytes : TensorBytes(tensor.data());
}

void ReceivedMessage::FillInData() {
  for (const auto& [key, entry] : data_) {
    std::string* data = entry.tensor->mutable_data();
    data->resize(entry.bytes.size());
    entry.bytes.CopyTo(data->data());
  }
  Release();
}

void ReceivedMessage::Release() {
  data_.clear();
  slices_.clear();
  buffer_.Clear();
}

}  // namespace attention::codec
