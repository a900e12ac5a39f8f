#include "proto/codec/outgoing_message.h"

#include <google/protobuf/io/coded_stream.h>

#include <utility>

namespace attention::codec {
namespace {

constexpr int kLengthDelimited = 2;

// A slice costs about as much as copying this many bytes: an allocation, two counted references and
// an entry in each of gRPC's buffers.
constexpr std::size_t kCopiedDataBytes = 512;

std::uint64_t TagOf(int field_number) {
  return (static_cast<std::uint64_t>(field_number) << 3) | kLengthDelimited;
}

std::size_t VarintSize(std::uint64_t value) {
  return google::protobuf::io::CodedOutputStream::VarintSize64(value);
}

// Of a length-delimited field.
std::size_t FieldSize(int field_number, std::size_t value_size) {
  return VarintSize(TagOf(field_number)) + VarintSize(value_size) + value_size;
}

}  // namespace

// Gathers small bytes into chunks and keeps large data as slices of its own.
class OutgoingMessage::Writer {
 public:
  void WriteFieldHeader(int field_number, std::size_t value_size) {
    WriteVarint(TagOf(field_number));
    WriteVarint(value_size);
  }

  void WriteSmall(const std::string& bytes) { chunk_ += bytes; }

  void WriteData(grpc::Slice data) {
    if (data.size() < kCopiedDataBytes) {
      chunk_.append(reinterpret_cast<const char*>(data.begin()), data.size());
      return;
    }
    EndChunk();
    slices_.push_back(std::move(data));
  }

  grpc::ByteBuffer Finish() {
    EndChunk();
    return {slices_.data(), slices_.size()};
  }

 private:
  void WriteVarint(std::uint64_t value) {
    for (; value >= 0x80; value >>= 7) chunk_.push_back(static_cast<char>(value | 0x80));
    chunk_.push_back(static_cast<char>(value));
  }

  void EndChunk() {
    if (chunk_.empty()) return;
    slices_.emplace_back(chunk_);
    chunk_.clear();
  }

  std::string chunk_;
  std::vector<grpc::Slice> slices_;
};

OutgoingMessage::OutgoingMessage(const google::protobuf::MessageLite& small_fields)
    : small_fields_(small_fields.SerializeAsString()), size_(small_fields_.size()) {}

OutgoingMessage::OutgoingMessage(const v1::Tensor& header, grpc::Slice data)
    : OutgoingMessage(header) {
  if (data.size() == 0) return;
  size_ += FieldSize(v1::Tensor::kDataFieldNumber, data.size());
  data_ = std::move(data);
}

void OutgoingMessage::Add(int field_number, OutgoingMessage message) {
  size_ += FieldSize(field_number, message.size_);
  Child& child = children_.emplace_back(Child{field_number, {}});
  child.message.push_back(std::move(message));
}

std::size_t OutgoingMessage::copied_bytes() const {
  std::size_t bytes = data_.has_value() && data_->size() < kCopiedDataBytes ? data_->size() : 0;
  for (const Child& child : children_) bytes += child.message[0].copied_bytes();
  return bytes;
}

void OutgoingMessage::WriteTo(Writer& writer) {
  writer.WriteSmall(small_fields_);
  if (data_.has_value()) {
    writer.WriteFieldHeader(v1::Tensor::kDataFieldNumber, data_->size());
    writer.WriteData(*std::move(data_));
  }
  for (Child& child : children_) {
    writer.WriteFieldHeader(child.field_number, child.message[0].size_);
    child.message[0].WriteTo(writer);
  }
}

grpc::ByteBuffer OutgoingMessage::Serialize() && {
  Writer writer;
  WriteTo(writer);
  return writer.Finish();
}

}  // namespace attention::codec
