// A message to send whose tensors' bytes are sent from where they lie.
//
// protobuf's serializer copies every `bytes` field. Here the small fields are serialized as usual
// and the tensors' data is put between them as slices of its own, without being touched. The result
// is plain protobuf: nested lengths are right, no field occurs twice, and only the order of fields
// may differ from protobuf's own.
//
// Use: build from the inside out, each level with its small fields first; then Serialize once.
#pragma once

#include <google/protobuf/message_lite.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/slice.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "attention/v1/tensor.pb.h"

namespace attention::codec {

class OutgoingMessage {
 public:
  // The fields of the message that lead to no tensor; those that do must not be set.
  explicit OutgoingMessage(const google::protobuf::MessageLite& small_fields);
  // A Tensor; `header` has dtype and shape. `data` is sent as it is. With a slice that owns nothing
  // (STATIC_SLICE) the memory must live until the message is serialised in one piece.
  OutgoingMessage(const v1::Tensor& header, grpc::Slice data);

  // Adds an occurrence of a field that holds a message.
  void Add(int field_number, OutgoingMessage message);

  // Serialized size in bytes.
  std::size_t size() const { return size_; }

  // Bytes of tensors that Serialize copies: those of tensors so small that a slice of their own
  // would cost more.
  std::size_t copied_bytes() const;

  grpc::ByteBuffer Serialize() &&;

  // The same in one slice of its own, into which every byte is copied once: for tensors whose
  // memory need not live on. Throws std::bad_alloc when memory is out.
  grpc::ByteBuffer SerializeInOnePiece() &&;

 private:
  class SliceWriter;
  class PieceWriter;
  struct Child {
    int field_number;
    std::vector<OutgoingMessage> message;  // one; a vector, as the type is not complete yet
  };

  template <typename Writer>
  void WriteTo(Writer& writer);

  std::string small_fields_;
  std::optional<grpc::Slice> data_;
  std::vector<Child> children_;
  std::size_t size_ = 0;
};

}  // namespace attention::codec
