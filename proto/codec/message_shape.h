// Which fields of a message lead to tensors.
#pragma once

#include <google/protobuf/descriptor.h>

#include <memory>
#include <utility>
#include <vector>

namespace attention::codec {

// Immutable once made. Found from the descriptor, so that a new message or field needs no code.
struct MessageShape {
  explicit MessageShape(const google::protobuf::Descriptor* descriptor);

  // The shape of a message type, made when first asked for. Thread-safe.
  static const MessageShape& Of(const google::protobuf::Descriptor* descriptor);

  bool leads_to_tensors() const { return is_tensor || !children.empty(); }

  struct Child {
    const google::protobuf::FieldDescriptor* field;
    std::unique_ptr<MessageShape> shape;
  };
  // Null: the field holds no tensor.
  const Child* Find(int field_number) const;

  bool is_tensor = false;
  std::vector<Child> children;
};

}  // namespace attention::codec
