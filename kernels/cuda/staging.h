// Moves tensors between where callers hold them and the buffers that travel.
#pragma once

#include "kernels/cuda/plan.h"
#include "kernels/cuda/run_memory.h"

namespace attention::cuda {

// Fills the upload of a plan: its tables, with device addresses in `memory`, and the tensors of a
// part.
void FillTables(const CudaPlan& plan, RunMemory& memory);
void FillPart(const CudaPlan& plan, std::size_t part, RunMemory& memory);

// Writes what came back of a part to where the tasks want it.
void DeliverPart(const CudaPlan& plan, std::size_t part, const RunMemory& memory);

// Copies `count` rows from `first` on, dense, into `to`; each row of a head is followed by zeros up
// to `padded_dim` elements.
void GatherRows(const RowsView& rows, std::int64_t first, std::int64_t count, int heads, int dim,
                int padded_dim, char* to);

// The rows of an append, dense. Pieces of unlike types become float32, which holds each exactly.
DType GatheredType(const RowsView& rows, std::span<const RowsPiece> pieces);
void GatherPieces(const RowsView& rows, std::span<const RowsPiece> pieces, std::int64_t count,
                  int heads, int dim, char* to);

}  // namespace attention::cuda
