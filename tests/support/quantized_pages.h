// Compares rows with scales in a backend's pages, value by value (kernels/api/quantized_row.h).
#pragma once

#include <cstdint>
#include <functional>

#include "kernels/api/attention_backend.h"

namespace attention::testing {

// A token's key or value of a head in a page.
struct StoredRow {
  const char* page;
  int head;
  int token;  // within the page
  bool is_value;
};

// How a backend lays out its pages.
struct PageReader {
  std::function<std::uint8_t(const StoredRow& row, int dim)> quantized;
  std::function<float(const StoredRow& row)> scale;
};

// Appends rows that are hard to quantise, in every type that rows may have, and expects the values
// and scales of quantized_row.h in the pages, whose memory the host can read.
void ExpectDocumentedValues(
    AttentionBackend& backend, DType dtype,
    const std::function<PageReader(const KvGeometry& geometry, std::int64_t page_size)>& reader_of);

}  // namespace attention::testing
