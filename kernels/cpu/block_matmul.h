// oneDNN's matmul for a block of weights, made row-invariant.
//
// oneDNN sums a row of y in another order when the number of rows is another: on AVX2 (oneDNN 2.6,
// gemm:jit) 1, 2, 3, 4, 7 and 8 rows all differ, and so do the same rows on one thread and on two.
// So rows are computed in blocks of a few fixed sizes, zeros filling up the last one, by one
// thread, and only sizes that gave the same bits in a probe, at every place in the block, are used
// together. The probe runs random rows through every size when a shape is first met; two orders of
// summation that agree in all of some 10^4 sums of random numbers are the same order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <oneapi/dnnl/dnnl.hpp>
#include <vector>

#include "kernels/base/aligned_buffer.h"

namespace attention::cpu {

// Sums of a thread: what oneDNN asks for beside its arguments.
struct MatmulScratch {
  AlignedBuffer<char> bytes;
};

// For weights [in_features, out_features] of any values. Immutable; Run is thread-safe with a
// scratch for each thread.
class BlockMatmul {
 public:
  // Throws dnnl::error or std::bad_alloc.
  BlockMatmul(std::int64_t in_features, std::int64_t out_features);

  std::int64_t in_features() const { return in_features_; }
  std::int64_t out_features() const { return out_features_; }
  // Rows of a block, ascending.
  const std::vector<std::int64_t>& block_rows() const { return block_rows_; }
  std::int64_t max_rows() const { return block_rows_.back(); }
  // Rows of the block that `left` rows begin with.
  std::int64_t RowsFor(std::int64_t left) const;

  std::size_t weights_bytes() const { return weights_desc_.get_size(); }
  // From and to [out_features, in_features], float32. The packed weights lie at `place`, 64-byte
  // aligned, of weights_bytes().
  dnnl::memory PackWeights(const float* weights, void* place) const;
  void UnpackWeights(const dnnl::memory& packed, float* weights) const;

  // y [rows, out_features] = x [rows, in_features] W^T + bias for one of block_rows.
  void Run(std::int64_t rows, const float* x, const dnnl::memory& weights, const float* bias,
           float* y, MatmulScratch& scratch) const;

 private:
  struct Size {
    std::int64_t rows;
    dnnl::matmul::primitive_desc desc;
    dnnl::matmul matmul;
  };

  void AddSize(std::int64_t rows);
  void RunSize(const Size& size, const float* x, const dnnl::memory& weights, const float* bias,
               float* y, MatmulScratch& scratch) const;
  std::vector<float> ProbeSize(const Size& size, const std::vector<float>& x,
                               const dnnl::memory& weights, const std::vector<float>& bias) const;
  void KeepInvariantSizes();

  const std::int64_t in_features_;
  const std::int64_t out_features_;
  dnnl::memory::desc weights_desc_;
  std::vector<Size> sizes_;
  std::vector<std::int64_t> block_rows_;
};

// Makes oneDNN run on the calling thread alone: the backend's own pool holds the threads, and
// OpenMP's would compete with them for the cores.
void UseOneDnnThread();

}  // namespace attention::cpu
