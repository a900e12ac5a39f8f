#include "proto/codec/slice_reader.h"

#include <algorithm>

namespace attention::codec {

SliceReader::SliceReader(std::span<const grpc::Slice> slices) : slices_(slices) {
  for (const grpc::Slice& slice : slices) remaining_ += slice.size();
}

template <typename Visit>
void SliceReader::Take(std::size_t size, Visit visit) {
  remaining_ -= size;
  while (size > 0) {
    const grpc::Slice& slice = slices_.front();
    const std::size_t count = std::min(size, slice.size() - offset_);
    visit(absl::string_view(reinterpret_cast<const char*>(slice.begin()) + offset_, count));
    offset_ += count;
    size -= count;
    if (offset_ == slice.size()) {
      slices_ = slices_.subspan(1);
      offset_ = 0;
    }
  }
}

bool SliceReader::ReadByte(std::uint8_t* byte) {
  if (remaining_ == 0) return false;
  while (offset_ == slices_.front().size()) {  // a slice may be empty
    slices_ = slices_.subspan(1);
    offset_ = 0;
  }
  *byte = slices_.front().begin()[offset_++];
  --remaining_;
  return true;
}

bool SliceReader::ReadVarint(int max_bytes, std::uint64_t* value) {
  *value = 0;
  for (int i = 0; i < max_bytes; ++i) {
    std::uint8_t byte = 0;
    if (!ReadByte(&byte)) return false;
    *value |= static_cast<std::uint64_t>(byte & 0x7f) << (7 * i);
    if ((byte & 0x80) == 0) return true;
  }
  return false;
}

bool SliceReader::AppendVarintTo(std::string* out) {
  for (int i = 0; i < 10; ++i) {
    std::uint8_t byte = 0;
    if (!ReadByte(&byte)) return false;
    out->push_back(static_cast<char>(byte));
    if ((byte & 0x80) == 0) return true;
  }
  return false;
}

bool SliceReader::AppendTo(std::size_t size, std::string* out) {
  if (size > remaining_) return false;
  Take(size, [out](absl::string_view piece) { out->append(piece.data(), piece.size()); });
  return true;
}

bool SliceReader::View(std::size_t size, TensorBytes* bytes) {
  if (size > remaining_) return false;
  Take(size, [bytes](absl::string_view piece) { bytes->Add(piece); });
  return true;
}

}  // namespace attention::codec
