// The fields of a message that lead to tensors.
#pragma once

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>

#include <memory>
#include <utility>
#include <vector>

namespace attention::codec {

// Immutable once made. Found from the descriptor, so that a new message or field needs no code.
//
// A member of a oneof that has tensors is a child though it leads to none itself: what comes later
// replaces what came before, so the order of the members counts. Such a oneof holds messages only.
struct MessageShape {
  explicit MessageShape(const google::protobuf::Descriptor* descriptor);

  // The shape of a message type, made when first asked for. Thread-safe.
  static const MessageShape& Of(const google::protobuf::Descriptor* descriptor);

  bool leads_to_tensors() const { return is_tensor || !children.empty(); }

  struct Child {
    const google::protobuf::FieldDescriptor* field;
    std::unique_ptr<MessageShape> shape;
  };
  // The child at the field; null if the field is parsed by protobuf.
  const Child* Find(int field_number) const;

  const google::protobuf::Message* prototype;  // of new messages
  bool is_tensor = false;
  std::vector<Child> children;
};

}  // namespace attention::codec
