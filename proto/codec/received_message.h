// A message as it was received, decoded without touching the bytes of its tensors.
//
// protobuf's own parser copies every `bytes` field into a string. Here the small fields are parsed
// into the message as usual, and `data` of every attention.v1.Tensor, however deep, stays in the
// buffers that gRPC received: the reader copies it once, to where it is needed. What is on the wire
// is plain protobuf, so any generated stub is a client.
//
// Thread-safety: none; const methods may run together.
#pragma once

#include <google/protobuf/message.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/slice.h>

#include <cstddef>
#include <unordered_map>
#include <vector>

#include "absl/status/status.h"
#include "attention/v1/tensor.pb.h"
#include "proto/codec/tensor_bytes.h"

namespace attention::codec {

class ReceivedMessage {
 public:
  // Parses into `message`, which must be empty, and keeps the buffers; what was received before is
  // released. Accepts what protobuf's parser accepts, and merges fields that occur twice as it
  // does, but for one thing: unknown groups, which proto3 does not have, are refused beside
  // tensors.
  //
  // INVALID_ARGUMENT names the field, as "steps[2].q", where the bytes stop being a message of the
  // type. The tensors must stay where they are in memory as long as Data is asked about them.
  absl::Status Parse(const grpc::ByteBuffer& buffer, google::protobuf::Message* message);

  // The bytes of a tensor's data: where they were received or, for a tensor of another origin, in
  // its own field. Valid until Release and as long as the message lives.
  TensorBytes Data(const v1::Tensor& tensor) const;

  // Copies the data of every tensor into its own field, for who wants an ordinary message.
  void FillInData();

  // Bytes of the whole message on the wire.
  std::size_t size() const { return size_; }

  // Lets the received buffers go; no Data of this message may be read any more.
  void Release();

 private:
  friend class MessageParser;

  struct Entry {
    v1::Tensor* tensor;
    TensorBytes bytes;
  };

  // The slices' last holder: gRPC 1.51 ends the process when a slice that counts for a resource
  // quota in need of memory goes by itself, on a thread that is not in a call of gRPC's.
  grpc::ByteBuffer buffer_;
  std::vector<grpc::Slice> slices_;
  std::unordered_map<const v1::Tensor*, Entry> data_;
  std::size_t size_ = 0;
};

}  // namespace attention::codec
