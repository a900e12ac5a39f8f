// The bytes of a tensor where they lie: in one piece, or in the pieces in which they were received.
#pragma once

#include <cstddef>
#include <span>

#include "absl/container/inlined_vector.h"
#include "absl/strings/string_view.h"

namespace attention::codec {

// A view: whoever holds the buffers keeps them until the bytes are no longer needed.
class TensorBytes {
 public:
  TensorBytes() = default;
  explicit TensorBytes(absl::string_view bytes) { Add(bytes); }

  void Add(absl::string_view piece) {
    if (piece.empty()) return;
    pieces_.push_back(piece);
    size_ += piece.size();
  }

  std::size_t size() const { return size_; }
  // None is empty. HTTP/2 cuts a message wherever a read of the socket ended, so a piece may begin
  // and end inside an element.
  std::span<const absl::string_view> pieces() const { return {pieces_.data(), pieces_.size()}; }

  // Writes size() bytes.
  void CopyTo(char* out) const;

 private:
  absl::InlinedVector<absl::string_view, 2> pieces_;
  std::size_t size_ = 0;
};

}  // namespace attention::codec
