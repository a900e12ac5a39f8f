#include "proto/codec/slice_reader.h"

#include <algorithm>

namespace attention::codec {

SliceReader::SliceReader(std::span<const grpc::Slice> slices) : slices_(slices) {
  for (const grpc::Slice& slice : slices) remaining_ += slice.size();
}

void SliceReader::EnterNext() {
  do {
    at_ = slices_.front().begin();
    end_ = slices_.front().end();
    slices_ = slices_.subspan(1);
  } while (at_ == end_);
}

template <typename Visit>
void SliceReader::Take(std::size_t size, Visit visit) {
  remaining_ -= size;
  while (size > 0) {
    if (at_ == end_) EnterNext();
    const std::size_t count = std::min(size, static_cast<std::size_t>(end_ - at_));
    visit(absl::string_view(reinterpret_cast<const char*>(at_), count));
    at_ += count;
    size -= count;
  }
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
