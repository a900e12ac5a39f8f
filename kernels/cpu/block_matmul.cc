#include "kernels/cpu/block_matmul.h"

#include <algorithm>
#include <cstring>
#include <random>

#include "kernels/base/check.h"

extern "C" void omp_set_num_threads(int num_threads);  // libgomp, which oneDNN is built on

namespace attention::cpu {
namespace {

using dnnl::memory;

// 1 and 4 for decoding, 16 for what batches decode, the others for prefill: a call of fewer rows
// costs about as much as one of 16 where oneDNN packs the weights on each call.
constexpr std::int64_t kCandidateRows[] = {1, 4, 16, 64, 256};
// The size that must be among those kept, if it is invariant at all.
constexpr std::int64_t kPreferredRows = 16;
constexpr std::int64_t kProbeRows = 256;

dnnl::engine& Engine() {
  static dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

dnnl::stream& Stream() {
  thread_local dnnl::stream stream(Engine());
  return stream;
}

memory::desc Matrix(std::int64_t rows, std::int64_t columns) {
  return {{rows, columns}, memory::data_type::f32, memory::format_tag::ab};
}

void* Mutable(const void* data) { return const_cast<void*>(data); }  // oneDNN's arguments are

std::vector<float> RandomFloats(std::size_t count, std::uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<float> values(count);
  // Values of any sign and magnitude near 1, so that every order of summation rounds differently.
  for (float& value : values) value = static_cast<float>(random()) * 0x1p-31f - 1.0f;
  return values;
}

}  // namespace

void UseOneDnnThread() {
  thread_local const bool is_set = [] {
    omp_set_num_threads(1);
    return true;
  }();
  (void)is_set;
}

BlockMatmul::BlockMatmul(std::int64_t in_features, std::int64_t out_features)
    : in_features_(in_features), out_features_(out_features) {
  UseOneDnnThread();
  // The layout of the weights is what the largest size likes best.
  for (auto it = std::rbegin(kCandidateRows); it != std::rend(kCandidateRows); ++it) AddSize(*it);
  std::reverse(sizes_.begin(), sizes_.end());
  KeepInvariantSizes();
}

void BlockMatmul::AddSize(std::int64_t rows) {
  const memory::desc any({in_features_, out_features_}, memory::data_type::f32,
                         memory::format_tag::any);
  dnnl::primitive_attr attributes;
  // The library's own scratchpad belongs to the thread that made the primitive.
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  const dnnl::matmul::desc operation(Matrix(rows, in_features_),
                                     sizes_.empty() ? any : weights_desc_, Matrix(1, out_features_),
                                     Matrix(rows, out_features_));
  try {
    dnnl::matmul::primitive_desc desc(operation, attributes, Engine());
    if (sizes_.empty()) weights_desc_ = desc.weights_desc();
    sizes_.push_back({rows, desc, dnnl::matmul(desc)});
  } catch (const dnnl::error& error) {
    // Other sizes need not support that layout.
    if (sizes_.empty() || error.status != dnnl_unimplemented) throw;
  }
}

void BlockMatmul::RunSize(const Size& size, const float* x, const memory& weights,
                          const float* bias, float* y, MatmulScratch& scratch) const {
  const dnnl::matmul::primitive_desc& desc = size.desc;
  const memory::desc scratch_desc = desc.scratchpad_desc();
  char* bytes = scratch.bytes.Reserve(std::max<std::size_t>(1, scratch_desc.get_size()));
  size.matmul.execute(Stream(), {{DNNL_ARG_SRC, memory(desc.src_desc(), Engine(), Mutable(x))},
                                 {DNNL_ARG_WEIGHTS, weights},
                                 {DNNL_ARG_BIAS, memory(desc.bias_desc(), Engine(), Mutable(bias))},
                                 {DNNL_ARG_DST, memory(desc.dst_desc(), Engine(), y)},
                                 {DNNL_ARG_SCRATCHPAD, memory(scratch_desc, Engine(), bytes)}});
  Stream().wait();
}

std::vector<float> BlockMatmul::ProbeSize(const Size& size, const std::vector<float>& x,
                                          const memory& weights,
                                          const std::vector<float>& bias) const {
  MatmulScratch scratch;
  AlignedBuffer<float> block_x(static_cast<std::size_t>(size.rows * in_features_));
  AlignedBuffer<float> block_y(static_cast<std::size_t>(size.rows * out_features_));
  std::vector<float> y(static_cast<std::size_t>(kProbeRows * out_features_));
  for (std::int64_t row = 0; row < kProbeRows; row += size.rows) {
    std::copy_n(x.data() + row * in_features_, size.rows * in_features_, block_x.data());
    RunSize(size, block_x.data(), weights, bias.data(), block_y.data(), scratch);
    std::copy_n(block_y.data(), size.rows * out_features_, y.data() + row * out_features_);
  }
  return y;
}

void BlockMatmul::KeepInvariantSizes() {
  const std::vector<float> w =
      RandomFloats(static_cast<std::size_t>(in_features_ * out_features_), 1);
  const std::vector<float> x = RandomFloats(static_cast<std::size_t>(kProbeRows * in_features_), 2);
  const std::vector<float> bias = RandomFloats(static_cast<std::size_t>(out_features_), 3);
  // Every row one place further on, the last one first: shows what depends on the place in a block.
  std::vector<float> moved_x(x.end() - in_features_, x.end());
  moved_x.insert(moved_x.end(), x.begin(), x.end() - in_features_);
  AlignedBuffer<char> packed(weights_bytes());
  const memory weights = PackWeights(w.data(), packed.data());

  std::vector<std::vector<float>> results;
  for (const Size& size : sizes_) {
    std::vector<float> y = ProbeSize(size, x, weights, bias);
    const std::vector<float> moved = ProbeSize(size, moved_x, weights, bias);
    const std::size_t last = y.size() - static_cast<std::size_t>(out_features_);
    const bool is_invariant =
        std::memcmp(y.data(), moved.data() + out_features_, last * sizeof(float)) == 0 &&
        std::memcmp(y.data() + last, moved.data(), out_features_ * sizeof(float)) == 0;
    results.push_back(is_invariant ? std::move(y) : std::vector<float>());
  }
  // A single row is always invariant, so there is a size to begin with.
  std::size_t base = 0;
  for (std::size_t i = 0; i < sizes_.size(); ++i) {
    if (sizes_[i].rows == kPreferredRows && !results[i].empty()) base = i;
  }
  ATTENTION_CHECK(!results[base].empty());
  std::vector<Size> kept;
  for (std::size_t i = 0; i < sizes_.size(); ++i) {
    if (results[i].size() != results[base].size() ||
        std::memcmp(results[i].data(), results[base].data(), results[i].size() * sizeof(float)) !=
            0) {
      continue;
    }
    block_rows_.push_back(sizes_[i].rows);
    kept.push_back(std::move(sizes_[i]));
  }
  sizes_ = std::move(kept);
}

std::int64_t BlockMatmul::RowsFor(std::int64_t left) const {
  // Filled up with zeros if more than half of the block is used: then it costs less than two of the
  // next smaller size.
  std::int64_t rows = block_rows_.front();
  for (const std::int64_t candidate : block_rows_) {
    if (candidate <= left || 2 * left > candidate) rows = candidate;
  }
  return rows;
}

memory BlockMatmul::PackWeights(const float* weights, void* place) const {
  UseOneDnnThread();
  memory plain({{in_features_, out_features_}, memory::data_type::f32, memory::format_tag::ba},
               Engine(), Mutable(weights));
  memory packed(weights_desc_, Engine(), place);
  dnnl::reorder(plain, packed).execute(Stream(), plain, packed);
  Stream().wait();
  return packed;
}

void BlockMatmul::UnpackWeights(const memory& packed, float* weights) const {
  UseOneDnnThread();
  memory source = packed;
  memory plain({{in_features_, out_features_}, memory::data_type::f32, memory::format_tag::ba},
               Engine(), weights);
  dnnl::reorder(source, plain).execute(Stream(), source, plain);
  Stream().wait();
}

void BlockMatmul::Run(std::int64_t rows, const float* x, const memory& weights, const float* bias,
                      float* y, MatmulScratch& scratch) const {
  UseOneDnnThread();
  for (const Size& size : sizes_) {
    if (size.rows == rows) return RunSize(size, x, weights, bias, y, scratch);
  }
  ATTENTION_CHECK(false);
}

}  // namespace attention::cpu
