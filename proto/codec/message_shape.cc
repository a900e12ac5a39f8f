#include "proto/codec/message_shape.h"

#include <cassert>
#include <unordered_map>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "attention/v1/tensor.pb.h"

namespace attention::codec {

namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;

bool LeadsToTensors(const FieldDescriptor& field) {
  return field.message_type() != nullptr && !field.is_map() &&
         MessageShape(field.message_type()).leads_to_tensors();
}

bool IsInOneofWithTensors(const FieldDescriptor& field) {
  const google::protobuf::OneofDescriptor* oneof = field.real_containing_oneof();
  if (oneof == nullptr) return false;
  for (int i = 0; i < oneof->field_count(); ++i) {
    if (LeadsToTensors(*oneof->field(i))) return true;
  }
  return false;
}

}  // namespace

// Our messages do not contain themselves, so this ends.
MessageShape::MessageShape(const Descriptor* descriptor)
    : prototype(google::protobuf::MessageFactory::generated_factory()->GetPrototype(descriptor)),
      is_tensor(descriptor == v1::Tensor::descriptor()) {
  if (is_tensor) return;
  for (int i = 0; i < descriptor->field_count(); ++i) {
    const FieldDescriptor* field = descriptor->field(i);
    if (!LeadsToTensors(*field) && !IsInOneofWithTensors(*field)) continue;
    assert(field->message_type() != nullptr);
    children.push_back({field, std::make_unique<MessageShape>(field->message_type())});
  }
}

const MessageShape& MessageShape::Of(const Descriptor* descriptor) {
  static absl::Mutex mutex(absl::kConstInit);
  static auto& shapes = *new std::unordered_map<const Descriptor*, std::unique_ptr<MessageShape>>;
  absl::MutexLock lock(&mutex);
  std::unique_ptr<MessageShape>& shape = shapes[descriptor];
  if (shape == nullptr) shape = std::make_unique<MessageShape>(descriptor);
  return *shape;
}

const MessageShape::Child* MessageShape::Find(int field_number) const {
  for (const Child& child : children) {
    if (child.field->number() == field_number) return &child;
  }
  return nullptr;
}

}  // namespace attention::codec
