#include "proto/codec/message_shape.h"

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"
#include "attention/v1/tensor.pb.h"

namespace attention::codec {

// Our messages do not contain themselves, so this ends.
MessageShape::MessageShape(const google::protobuf::Descriptor* descriptor)
    : is_tensor(descriptor == v1::Tensor::descriptor()) {
  if (is_tensor) return;
  for (int i = 0; i < descriptor->field_count(); ++i) {
    const google::protobuf::FieldDescriptor* field = descriptor->field(i);
    if (field->message_type() == nullptr || field->is_map()) continue;
    auto shape = std::make_unique<MessageShape>(field->message_type());
    if (shape->leads_to_tensors()) children.push_back({field, std::move(shape)});
  }
}

const MessageShape& MessageShape::Of(const google::protobuf::Descriptor* descriptor) {
  static absl::Mutex mutex(absl::kConstInit);
  static auto& shapes =
      *new absl::flat_hash_map<const google::protobuf::Descriptor*, std::unique_ptr<MessageShape>>;
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
