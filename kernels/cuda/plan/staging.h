// Moves tensors between where callers hold them and the buffers that travel.
#pragma once

#include <cstddef>
#include <vector>

#include "kernels/cuda/plan/plan.h"
#include "kernels/cuda/plan/run_memory.h"

namespace attention::cuda {

// Rows that go straight between where a caller holds them and their offset in the device's buffer.
struct DirectCopy {
  std::size_t offset = 0;
  char* host = nullptr;
  std::size_t bytes = 0;
};

// Fills the upload of a plan: its tables, with device addresses in `memory`, and the tensors of a
// part. It leaves out, and returns in the order of their offsets, rows that are
// `direct_bytes` or more, lie as they travel, and in memory from which copies go straight.
void FillTables(const CudaPlan& plan, RunMemory& memory);
std::vector<DirectCopy> FillPart(const CudaPlan& plan, std::size_t part, std::size_t direct_bytes,
                                 RunMemory& memory);

// The same of a part's outputs, and what else came back: written to where the tasks want it.
std::vector<DirectCopy> DirectResults(const CudaPlan& plan, std::size_t part,
                                      std::size_t direct_bytes, const Device& device);
void DeliverPart(const CudaPlan& plan, std::size_t part, std::size_t direct_bytes,
                 const RunMemory& memory);

// Copies `count` rows from `first` on, dense, into `to`; each row of a head is followed by zeros up
// to `padded_dim` elements.
void GatherRows(const RowsView& rows, std::int64_t first, std::int64_t count, int heads, int dim,
                int padded_dim, char* to);

// The rows of an append, dense. Pieces of unlike types become float32, which holds each exactly.
DType GatheredType(const RowsView& rows, std::span<const RowsPiece> pieces);
void GatherPieces(const RowsView& rows, std::span<const RowsPiece> pieces, std::int64_t count,
                  int heads, int dim, char* to);

}  // namespace attention::cuda
