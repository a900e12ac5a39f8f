#include "proto/codec/received_message.h"

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/codec/message_shape.h"
#include "proto/codec/slice_reader.h"

namespace attention::codec {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

enum WireType { kVarint = 0, kFixed64 = 1, kLengthDelimited = 2, kFixed32 = 5 };

void AppendVarint(std::uint64_t value, std::string* out) {
  for (; value >= 0x80; value >>= 7) out->push_back(static_cast<char>(value | 0x80));
  out->push_back(static_cast<char>(value));
}

// A field's name as an error shows it: "q.data", "steps.k".
std::string Join(const std::string& outer, absl::string_view inner) {
  return outer.empty() ? std::string(inner) : absl::StrCat(outer, ".", inner);
}

}  // namespace

// Walks the wire format of one message. Fields that lead to no tensor are gathered as they are and
// given to protobuf's parser.
class MessageParser {
 public:
  MessageParser(SliceReader& reader, ReceivedMessage& received)
      : reader_(reader), received_(received) {}

  // Parses the next `size` bytes. `name` is the message's field, for errors.
  absl::Status Parse(const MessageShape& shape, std::size_t size, const std::string& name,
                     Message* message) {
    const std::size_t end = reader_.remaining() - size;
    std::string small_fields;
    while (reader_.remaining() > end) {
      if (absl::Status status = ParseField(shape, end, name, message, &small_fields);
          !status.ok()) {
        return status;
      }
    }
    if (reader_.remaining() < end) return Malformed(name, "a field goes beyond its message's end");
    if (message->MergeFromString(small_fields)) return absl::OkStatus();
    return Malformed(name, absl::StrCat("expected the fields of ", message->GetTypeName()));
  }

 private:
  static absl::Status Malformed(const std::string& name, absl::string_view what) {
    return absl::InvalidArgumentError(
        absl::StrCat(name.empty() ? "the message" : name, " is malformed: ", what));
  }

  // Bytes that are left of the message that ends when `end` remain.
  std::size_t Left(std::size_t end) const {
    return reader_.remaining() < end ? 0 : reader_.remaining() - end;
  }

  absl::Status ParseField(const MessageShape& shape, std::size_t end, const std::string& name,
                          Message* message, std::string* small_fields) {
    std::uint64_t tag = 0;
    if (!reader_.ReadVarint(&tag)) return Malformed(name, "a field's tag is cut off");
    const std::uint64_t number = tag >> 3;
    if (number == 0 || number > static_cast<std::uint64_t>(FieldDescriptor::kMaxNumber)) {
      return Malformed(name, absl::StrCat("field number ", number, ", expected 1 to ",
                                          FieldDescriptor::kMaxNumber));
    }
    const int type = static_cast<int>(tag & 7);
    if (type == kLengthDelimited) {
      const auto* child = shape.Find(static_cast<int>(number));
      if (child != nullptr) return ParseChild(*child, end, name, message);
      if (shape.is_tensor && number == v1::Tensor::kDataFieldNumber) {
        return ParseData(end, name, static_cast<v1::Tensor*>(message));
      }
    }
    AppendVarint(tag, small_fields);
    return CopyValue(type, number, end, name, small_fields);
  }

  absl::Status ReadLength(std::size_t end, const std::string& name, std::size_t* length) {
    std::uint64_t value = 0;
    if (!reader_.ReadVarint(&value)) return Malformed(name, "its length is cut off");
    *length = Left(end);
    if (value > *length) {
      return Malformed(name, absl::StrCat("its length is ", value, ", expected at most the ",
                                          *length, " bytes that are left"));
    }
    *length = static_cast<std::size_t>(value);
    return absl::OkStatus();
  }

  absl::Status ParseChild(const MessageShape::Child& child, std::size_t end,
                          const std::string& name, Message* message) {
    const std::string child_name = Join(name, child.field->name());
    std::size_t length = 0;
    if (absl::Status status = ReadLength(end, child_name, &length); !status.ok()) return status;
    const google::protobuf::Reflection* reflection = message->GetReflection();
    Message* inner = child.field->is_repeated() ? reflection->AddMessage(message, child.field)
                                                : reflection->MutableMessage(message, child.field);
    return Parse(*child.shape, length, child_name, inner);
  }

  absl::Status ParseData(std::size_t end, const std::string& name, v1::Tensor* tensor) {
    std::size_t length = 0;
    if (absl::Status status = ReadLength(end, Join(name, "data"), &length); !status.ok()) {
      return status;
    }
    TensorBytes bytes;
    reader_.View(length, &bytes);
    received_.data_[tensor] = {tensor, std::move(bytes)};
    return absl::OkStatus();
  }

  absl::Status CopyValue(int type, std::uint64_t number, std::size_t end, const std::string& name,
                         std::string* out) {
    std::uint64_t varint = 0;
    std::size_t length = 0;
    switch (type) {
      case kVarint:
        if (!reader_.ReadVarint(&varint)) return Malformed(name, "a number is cut off");
        AppendVarint(varint, out);
        return absl::OkStatus();
      case kFixed64:
        length = 8;
        break;
      case kFixed32:
        length = 4;
        break;
      case kLengthDelimited:
        if (absl::Status status =
                ReadLength(end, Join(name, absl::StrCat("field ", number)), &length);
            !status.ok()) {
          return status;
        }
        AppendVarint(length, out);
        break;
      default:
        return Malformed(name, absl::StrCat("field ", number, " has wire type ", type,
                                            ", expected 0, 1, 2 or 5"));
    }
    if (length > Left(end) || !reader_.AppendTo(length, out)) {
      return Malformed(name, absl::StrCat("field ", number, " is cut off"));
    }
    return absl::OkStatus();
  }

  SliceReader& reader_;
  ReceivedMessage& received_;
};

absl::Status ReceivedMessage::Parse(const grpc::ByteBuffer& buffer, Message* message) {
  size_ = buffer.Length();
  if (!buffer.Dump(&slices_).ok()) {
    return absl::InvalidArgumentError("the message is malformed: it cannot be decompressed");
  }
  SliceReader reader(slices_);
  return MessageParser(reader, *this)
      .Parse(MessageShape::Of(message->GetDescriptor()), reader.remaining(), "", message);
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
}

}  // namespace attention::codec
