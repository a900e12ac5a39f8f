// Rows of embeddings of several sequences: packed one after another, or dense and padded.
#pragma once

#include <cstdint>
#include <numeric>
#include <vector>

#include "kernels/api/dtype.h"

namespace attention::server {

struct RaggedRows {
  bool is_dense = false;
  const char* data = nullptr;  // null: absent
  DType dtype = DType::kFloat32;
  std::int64_t columns = 0;
  std::int64_t num_tensor_rows = 0;  // padding included
  std::int64_t padded_len = 0;       // dense: rows of one sequence
  std::vector<std::int64_t> lens;    // rows of each sequence
  std::vector<std::int64_t> begins;  // of each sequence, in rows of the tensor

  bool is_present() const { return data != nullptr; }
  std::int64_t num_rows() const {  // of the sequences
    return std::accumulate(lens.begin(), lens.end(), std::int64_t{0});
  }
  const char* At(std::int64_t row) const {
    return data + row * columns * static_cast<std::int64_t>(DTypeBytes(dtype));
  }
};

}  // namespace attention::server
