#include "proto/codec/outgoing_message.h"

#include <google/protobuf/io/coded_stream.h>

#include <cstring>
#include <new>
#include <utility>

namespace attention::codec {
namespace {

constexpr int kLengthDelimitedType = 2;

// A slice costs about as much as copying this many bytes: an allocation, two counted references and
// an entry in each of gRPC's buffers.
constexpr std::size_t kCopiedDataBytes = 512;

std::uint64_t TagOf(int field_number) {
  return (static_cast<std::uint64_t>(field_number) << 3) | kLengthDelimitedType;
}

std::size_t VarintSize(std::uint64_t value) {
  return google::protobuf::io::CodedOutputStream::VarintSize64(value);
}

// The bytes that a length-delimited field takes, with its tag and length.
std::size_t FieldSize(int field_number, std::size_t value_size) {
  return VarintSize(TagOf(field_number)) + VarintSize(value_size) + value_size;
}

template <typename Writer>
void WriteVarint(std::uint64_t value, Writer& writer) {
  for (; value >= 0x80; value >>= 7) writer.WriteByte(static_cast<std::uint8_t>(value | 0x80));
  writer.WriteByte(static_cast<std::uint8_t>(value));
}

template <typename Writer>
void WriteFieldHeader(int field_number, std::size_t value_size, Writer& writer) {
  WriteVarint(TagOf(field_number), writer);
  WriteVarint(value_size, writer);
}

}  // namespace

// Gathers small bytes into chunks and keeps large data as slices of its own.
class OutgoingMessage::SliceWriter {
 public:
  void WriteByte(std::uint8_t byte) { chunk_.push_back(static_cast<char>(byte)); }
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
  void EndChunk() {
    if (chunk_.empty()) return;
    slices_.emplace_back(chunk_);
    chunk_.clear();
  }

  std::string chunk_;
  std::vector<grpc::Slice> slices_;
};

// Fills memory of the message's size.
class OutgoingMessage::PieceWriter {
 public:
  explicit PieceWriter(std::uint8_t* out) : out_(out) {}

  void WriteByte(std::uint8_t byte) { *out_++ = byte; }
  void WriteSmall(const std::string& bytes) { Write(bytes.data(), bytes.size()); }
  void WriteData(const grpc::Slice& data) { Write(data.begin(), data.size()); }

 private:
  void Write(const void* bytes, std::size_t size) {
    if (size > 0) std::memcpy(out_, bytes, size);
    out_ += size;
  }

  std::uint8_t* out_;
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

template <typename Writer>
void OutgoingMessage::WriteTo(Writer& writer) {
  writer.WriteSmall(small_fields_);
  if (data_.has_value()) {
    WriteFieldHeader(v1::Tensor::kDataFieldNumber, data_->size(), writer);
    writer.WriteData(*std::move(data_));
  }
  for (Child& child : children_) {
    WriteFieldHeader(child.field_number, child.message[0].size_, writer);
    child.message[0].WriteTo(writer);
  }
}

grpc::ByteBuffer OutgoingMessage::Serialize() && {
  SliceWriter writer;
  WriteTo(writer);
  return writer.Finish();
}

grpc::ByteBuffer OutgoingMessage::SerializeInOnePiece() && {
  // Not a slice of gRPC's own making, which ends the program when memory is out.
  auto* memory = static_cast<std::uint8_t*>(::operator new(size_));
  grpc::Slice slice(memory, size_, [](void* bytes) { ::operator delete(bytes); });
  PieceWriter writer(memory);
  WriteTo(writer);
  return {&slice, 1};
}

}  // namespace attention::codec
