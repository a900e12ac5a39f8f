#include "proto/codec/tensor_bytes.h"

#include <cstring>

namespace attention::codec {

void TensorBytes::CopyTo(char* out) const {
  for (const absl::string_view piece : pieces_) {
    std::memcpy(out, piece.data(), piece.size());
    out += piece.size();
  }
}

}  // namespace attention::codec
