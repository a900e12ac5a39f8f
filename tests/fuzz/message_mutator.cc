#include "tests/fuzz/message_mutator.h"

#include <algorithm>
#include <iterator>
#include <limits>
#include <vector>

#include "attention/v1/tensor.pb.h"

namespace attention::fuzz {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

constexpr std::int64_t kMaxTensorBytes = 1 << 14;

std::size_t Pick(Random& random, std::size_t count) { return random() % count; }

std::int64_t Integer(Random& random) {
  static constexpr std::int64_t kValues[] = {0,
                                             1,
                                             2,
                                             3,
                                             4,
                                             5,
                                             7,
                                             8,
                                             15,
                                             16,
                                             17,
                                             31,
                                             33,
                                             64,
                                             255,
                                             256,
                                             257,
                                             1024,
                                             65536,
                                             -1,
                                             -2,
                                             -7,
                                             std::int64_t{1} << 31,
                                             std::int64_t{1} << 32,
                                             std::int64_t{1} << 40,
                                             (std::int64_t{1} << 40) + 1,
                                             std::int64_t{1} << 62,
                                             std::numeric_limits<std::int64_t>::max(),
                                             std::numeric_limits<std::int64_t>::min(),
                                             std::numeric_limits<std::int32_t>::max(),
                                             std::numeric_limits<std::int32_t>::min()};
  // Small values are what keeps a message decodable.
  return kValues[Pick(random, random() % 3 == 0 ? std::size(kValues) : 12)];
}

float Float(Random& random) {
  static constexpr float kValues[] = {0.0f,
                                      -0.0f,
                                      0.125f,
                                      1.0f,
                                      -1.0f,
                                      30.0f,
                                      1e-38f,
                                      1e30f,
                                      -1e30f,
                                      std::numeric_limits<float>::quiet_NaN(),
                                      std::numeric_limits<float>::infinity()};
  return kValues[Pick(random, std::size(kValues))];
}

std::string RandomBytes(Random& random, std::size_t count) {
  std::string bytes(count, '\0');
  for (char& byte : bytes) byte = static_cast<char>(random());
  return bytes;
}

void SetScalar(Message* message, const FieldDescriptor* field, Random& random) {
  const Reflection& reflection = *message->GetReflection();
  switch (field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32:
      return reflection.SetInt32(message, field, static_cast<std::int32_t>(Integer(random)));
    case FieldDescriptor::CPPTYPE_INT64:
      return reflection.SetInt64(message, field, Integer(random));
    case FieldDescriptor::CPPTYPE_UINT64:
      return reflection.SetUInt64(message, field, static_cast<std::uint64_t>(Integer(random)));
    case FieldDescriptor::CPPTYPE_FLOAT:
      return reflection.SetFloat(message, field, Float(random));
    case FieldDescriptor::CPPTYPE_BOOL:
      return reflection.SetBool(message, field, random() % 2 == 0);
    case FieldDescriptor::CPPTYPE_ENUM:
      return reflection.SetEnumValue(message, field, static_cast<int>(random() % 7) - 1);
    case FieldDescriptor::CPPTYPE_STRING: {
      std::string value = reflection.GetString(*message, field);
      if (field->type() == FieldDescriptor::TYPE_STRING) {
        value = "text";
      } else {
        MutateBytes(&value, random);
      }
      return reflection.SetString(message, field, value);
    }
    default:
      break;
  }
}

// The only repeated scalars of the wire are int64 lengths and dimensions.
void MutateRepeated(Message* message, const FieldDescriptor* field, Random& random) {
  const Reflection& reflection = *message->GetReflection();
  const int size = reflection.FieldSize(*message, field);
  const std::size_t action = Pick(random, 4);
  if (action == 0 && size > 0) return reflection.RemoveLast(message, field);
  if (field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
    if (action == 1 && size > 0 && size < 4) {
      reflection.AddMessage(message, field)
          ->CopyFrom(reflection.GetRepeatedMessage(*message, field, 0));
    }
    return;
  }
  if (field->cpp_type() != FieldDescriptor::CPPTYPE_INT64) return;
  if (size == 0 || (action == 1 && size < 10)) {
    return reflection.AddInt64(message, field, Integer(random));
  }
  const int index = static_cast<int>(Pick(random, static_cast<std::size_t>(size)));
  reflection.SetRepeatedInt64(message, field, index, Integer(random));
}

void MutateField(Message* message, const FieldDescriptor* field, Random& random) {
  const Reflection& reflection = *message->GetReflection();
  if (field->is_map()) return;
  if (field->is_repeated()) return MutateRepeated(message, field, random);
  if (random() % 12 == 0) return reflection.ClearField(message, field);
  if (field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
    reflection.MutableMessage(message, field);
    return;
  }
  SetScalar(message, field, random);
}

// Calls `visit` for the message and every message below that is there.
template <typename Visit>
void ForEachMessage(Message* message, Visit visit) {
  visit(message);
  const Reflection& reflection = *message->GetReflection();
  std::vector<const FieldDescriptor*> fields;
  reflection.ListFields(*message, &fields);
  for (const FieldDescriptor* field : fields) {
    if (field->cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE || field->is_map()) continue;
    if (!field->is_repeated()) {
      ForEachMessage(reflection.MutableMessage(message, field), visit);
      continue;
    }
    for (int i = 0; i < reflection.FieldSize(*message, field); ++i) {
      ForEachMessage(reflection.MutableRepeatedMessage(message, field, i), visit);
    }
  }
}

void RepairTensor(v1::Tensor* tensor, Random& random) {
  std::int64_t bytes = tensor->dtype() == v1::DTYPE_FLOAT32 ? 4
                       : tensor->dtype() == v1::DTYPE_BOOL  ? 1
                                                            : 2;
  for (const std::int64_t dimension : tensor->shape()) {
    if (dimension < 0 || dimension > kMaxTensorBytes) return;
    bytes *= dimension;
    if (bytes > kMaxTensorBytes) return;
  }
  std::string* data = tensor->mutable_data();
  const auto wanted = static_cast<std::size_t>(bytes);
  if (data->size() < wanted) data->append(RandomBytes(random, wanted - data->size()));
  // A fresh string of exactly this size: the sanitizer then sees the very first byte beyond.
  *data = std::string(data->data(), wanted);
}

}  // namespace

void Mutate(Message* message, Random& random) {
  for (std::size_t count = 1 + Pick(random, 3); count > 0; --count) {
    std::vector<Message*> messages;
    ForEachMessage(message, [&](Message* found) { messages.push_back(found); });
    Message* chosen = messages[Pick(random, messages.size())];
    const auto* descriptor = chosen->GetDescriptor();
    const auto index = Pick(random, static_cast<std::size_t>(descriptor->field_count()));
    MutateField(chosen, descriptor->field(static_cast<int>(index)), random);
  }
}

void RepairTensors(Message* message, Random& random) {
  ForEachMessage(message, [&](Message* found) {
    if (found->GetDescriptor() != v1::Tensor::descriptor()) return;
    RepairTensor(static_cast<v1::Tensor*>(found), random);
  });
}

void MutateBytes(std::string* bytes, Random& random) {
  const std::size_t at = bytes->empty() ? 0 : Pick(random, bytes->size());
  switch (random() % 5) {
    case 0:
      bytes->resize(at);
      break;
    case 1:
      bytes->insert(at, RandomBytes(random, 1 + Pick(random, 8)));
      break;
    case 2:
      bytes->append(bytes->substr(at, 64));
      break;
    default:
      if (!bytes->empty()) (*bytes)[at] = static_cast<char>(random());
  }
}

}  // namespace attention::fuzz
