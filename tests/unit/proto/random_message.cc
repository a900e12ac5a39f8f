#include "tests/unit/proto/random_message.h"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>

#include <algorithm>

#include "attention/v1/attention_service.pb.h"
#include "attention/v1/server_service.pb.h"
#include "attention/v1/session_service.pb.h"

namespace attention::codec {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

// Lengths whose own encoding takes one byte and two, and tensors on both sides of the size from
// which they are sent as slices.
std::string RandomBytes(Random& random) {
  static constexpr std::size_t kSizes[] = {0, 1, 4, 100, 127, 128, 511, 512, 513, 3000};
  std::string bytes(kSizes[random() % std::size(kSizes)], '\0');
  for (char& byte : bytes) byte = static_cast<char>(random());
  return bytes;
}

// `field` is no message. Repeated fields get one more element.
void SetScalar(Message* message, const FieldDescriptor* field, Random& random) {
  const Reflection* reflection = message->GetReflection();
  const auto set = [&](auto setter, auto adder, auto value) {
    if (field->is_repeated()) {
      (reflection->*adder)(message, field, value);
    } else {
      (reflection->*setter)(message, field, value);
    }
  };
  const std::uint64_t number = (std::uint64_t{random()} << 32 | random()) >> (random() % 64);
  switch (field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32:
      return set(&Reflection::SetInt32, &Reflection::AddInt32, static_cast<std::int32_t>(number));
    case FieldDescriptor::CPPTYPE_INT64:
      return set(&Reflection::SetInt64, &Reflection::AddInt64, static_cast<std::int64_t>(number));
    case FieldDescriptor::CPPTYPE_UINT64:
      return set(&Reflection::SetUInt64, &Reflection::AddUInt64, number);
    case FieldDescriptor::CPPTYPE_FLOAT:
      return set(&Reflection::SetFloat, &Reflection::AddFloat, static_cast<float>(number));
    case FieldDescriptor::CPPTYPE_BOOL:
      return set(&Reflection::SetBool, &Reflection::AddBool, number % 2 == 0);
    case FieldDescriptor::CPPTYPE_ENUM:
      return set(&Reflection::SetEnumValue, &Reflection::AddEnumValue,
                 static_cast<int>(number % 5));
    case FieldDescriptor::CPPTYPE_STRING:
      if (field->type() == FieldDescriptor::TYPE_BYTES) {
        return reflection->SetString(message, field, RandomBytes(random));
      }
      return reflection->SetString(message, field, std::string(number % 200, 'x'));
    default:
      return;
  }
}

void FillField(Message* message, const FieldDescriptor* field, Random& random) {
  const Reflection* reflection = message->GetReflection();
  const unsigned count = field->is_repeated() ? random() % 4 : 1;
  for (unsigned i = 0; i < count; ++i) {
    if (field->message_type() == nullptr) {
      SetScalar(message, field, random);
    } else if (field->is_repeated()) {
      FillRandomly(reflection->AddMessage(message, field), random);
    } else {
      FillRandomly(reflection->MutableMessage(message, field), random);
    }
  }
}

}  // namespace

std::vector<std::unique_ptr<Message>> TensorMessages() {
  std::vector<std::unique_ptr<Message>> messages;
  messages.push_back(std::make_unique<v1::AttendRequest>());
  messages.push_back(std::make_unique<v1::AttendResponse>());
  messages.push_back(std::make_unique<v1::AttendStreamRequest>());
  messages.push_back(std::make_unique<v1::AttendStreamResponse>());
  messages.push_back(std::make_unique<v1::StepRequest>());
  messages.push_back(std::make_unique<v1::StepResponse>());
  messages.push_back(std::make_unique<v1::StepStreamRequest>());
  messages.push_back(std::make_unique<v1::StepStreamResponse>());
  messages.push_back(std::make_unique<v1::ExplainRequest>());
  return messages;
}

void FillRandomly(Message* message, Random& random) {
  const google::protobuf::Descriptor* descriptor = message->GetDescriptor();
  for (int i = 0; i < descriptor->field_count(); ++i) {
    if (random() % 4 != 0) FillField(message, descriptor->field(i), random);
  }
}

std::string Canonical(const Message& message) {
  std::string bytes;
  google::protobuf::io::StringOutputStream stream(&bytes);
  google::protobuf::io::CodedOutputStream coded(&stream);
  coded.SetSerializationDeterministic(true);  // maps in the order of their keys
  message.SerializeToCodedStream(&coded);
  coded.Trim();
  return bytes;
}

grpc::ByteBuffer Cut(const std::string& bytes, std::size_t max_piece, Random& random) {
  std::vector<grpc::Slice> slices;
  for (std::size_t begin = 0; begin < bytes.size();) {
    const std::size_t size = std::min(bytes.size() - begin, 1 + random() % max_piece);
    if (random() % 4 == 0) slices.emplace_back();
    slices.emplace_back(bytes.data() + begin, size);
    begin += size;
  }
  if (slices.empty() || random() % 4 == 0) slices.emplace_back();
  return {slices.data(), slices.size()};
}

std::string Joined(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  std::string bytes;
  if (!buffer.Dump(&slices).ok()) return bytes;
  for (const grpc::Slice& slice : slices) {
    bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  return bytes;
}

}  // namespace attention::codec
