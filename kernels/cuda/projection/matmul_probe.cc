#include "kernels/cuda/projection/matmul_probe.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/check.h"
#include "kernels/cuda/plan/run_memory.h"

namespace attention::cuda {
namespace {

// Rows of weights that differ; more of them would show nothing else.
constexpr std::int64_t kDistinctWeights = 64;

std::uint64_t Mix(std::uint64_t hash, std::uint64_t value) {  // FNV-1a, by words
  return (hash ^ value) * 0x100000001b3u;
}

class Probe {
 public:
  Probe(Device& device, MatmulDevice& matmuls, const MatmulShape& shape, std::int64_t rows)
      : device_(device),
        matmuls_(matmuls),
        shape_(shape),
        rows_(rows),
        host_(device.host_memory()),
        a_(device.memory()),
        moved_(device.memory()),
        b_(device.memory()),
        bias_(device.memory()),
        product_(device.memory()) {}

  absl::Status Begin() {
    for (const auto& [buffer, bytes] : {std::pair{&a_, a_bytes()},
                                        {&moved_, a_bytes()},
                                        {&b_, b_bytes()},
                                        {&bias_, bias_bytes()},
                                        {&product_, product_bytes()},
                                        {&host_, HostBytes()}}) {
      if (absl::Status status = buffer->Reserve(bytes); !status.ok()) return status;
    }
    if (absl::Status status = FillRows(); !status.ok()) return status;
    if (absl::Status status = FillWeights(); !status.ok()) return status;
    return FillBias();
  }

  absl::StatusOr<BlockCandidates> Try(std::int64_t block_rows, bool has_bias) {
    shape_.rows = block_rows;
    shape_.has_bias = has_bias;
    const auto algorithms = matmuls_.Algorithms(shape_);
    if (!algorithms.ok()) return algorithms.status();
    BlockCandidates size{block_rows, {}};
    for (const MatmulAlgorithm& algorithm : *algorithms) {
      if (size.candidates.size() == kMaxCandidates) break;
      auto fingerprint = Fingerprint(algorithm);
      if (!fingerprint.ok()) return fingerprint.status();
      size.candidates.push_back({algorithm, *fingerprint});
    }
    return size;
  }

 private:
  std::size_t row_bytes() const { return shape_.in_features * DTypeBytes(shape_.dtype); }
  std::size_t a_bytes() const { return rows_ * row_bytes(); }
  std::size_t b_bytes() const { return shape_.out_features * row_bytes(); }
  std::size_t bias_bytes() const { return shape_.out_features * sizeof(float); }
  std::size_t product_bytes() const { return rows_ * bias_bytes(); }
  std::size_t HostBytes() const {
    return std::max({a_bytes(), product_bytes(), kDistinctWeights * row_bytes(), bias_bytes()});
  }

  // Values of any sign and magnitude near 1, so that every order of summation rounds differently.
  void Randomize(std::int64_t count, DType dtype, std::uint32_t seed) {
    std::mt19937 random(seed);
    for (std::int64_t i = 0; i < count; ++i) {
      StoreElement(host_.data(), dtype, i, static_cast<float>(random()) * 0x1p-31f - 1.0f);
    }
  }

  // Also every row one place further on, the last one first.
  absl::Status FillRows() {
    Randomize(rows_ * shape_.in_features, shape_.dtype, 1);
    const std::size_t last = a_bytes() - row_bytes();
    absl::Status status =
        device_.CopyToDevice(Stream::kCompute, a_.data(), host_.data(), a_bytes());
    if (!status.ok()) return status;
    status =
        device_.CopyToDevice(Stream::kCompute, moved_.data(), host_.data() + last, row_bytes());
    if (!status.ok()) return status;
    status =
        device_.CopyToDevice(Stream::kCompute, moved_.data() + row_bytes(), host_.data(), last);
    return status.ok() ? device_.Synchronize() : status;
  }

  absl::Status FillWeights() {
    Randomize(std::min(kDistinctWeights, shape_.out_features) * shape_.in_features, shape_.dtype,
              2);
    for (std::int64_t row = 0; row < shape_.out_features; row += kDistinctWeights) {
      const std::int64_t count = std::min(kDistinctWeights, shape_.out_features - row);
      absl::Status status = device_.CopyToDevice(Stream::kCompute, b_.data() + row * row_bytes(),
                                                 host_.data(), count * row_bytes());
      if (!status.ok()) return status;
    }
    return device_.Synchronize();
  }

  absl::Status FillBias() {
    Randomize(shape_.out_features, DType::kFloat32, 3);
    absl::Status status =
        device_.CopyToDevice(Stream::kCompute, bias_.data(), host_.data(), bias_bytes());
    return status.ok() ? device_.Synchronize() : status;
  }

  // None, when the library refuses the algorithm after all or a row's bits depend on its place.
  absl::StatusOr<std::optional<std::uint64_t>> Fingerprint(const MatmulAlgorithm& algorithm) {
    std::optional<std::uint64_t> print;
    for (const auto& [rows, first] : {std::pair{a_.data(), std::int64_t{0}}, {moved_.data(), 1}}) {
      absl::Status status = Multiply(algorithm, rows);
      if (status.code() == absl::StatusCode::kUnimplemented) return std::optional<std::uint64_t>();
      if (!status.ok()) return status;
      const std::uint64_t now = HashFrom(first);
      if (print.has_value() && *print != now) return std::optional<std::uint64_t>();
      print = now;
    }
    return print;
  }

  absl::Status Multiply(const MatmulAlgorithm& algorithm, const char* rows) {
    // Elements that an algorithm leaves out must not be another's.
    std::memset(host_.data(), 0, product_bytes());
    absl::Status status =
        device_.CopyToDevice(Stream::kCompute, product_.data(), host_.data(), product_bytes());
    for (std::int64_t row = 0; status.ok() && row < rows_; row += shape_.rows) {
      status = matmuls_.Multiply(
          shape_, algorithm,
          {rows + row * row_bytes(), b_.data(), reinterpret_cast<const float*>(bias_.data()),
           reinterpret_cast<float*>(product_.data() + row * bias_bytes())});
    }
    if (!status.ok()) {
      // Work that was begun must be over before its memory is used again.
      const absl::Status rest = device_.Synchronize();
      return rest.ok() ? status : rest;
    }
    status = device_.CopyToHost(Stream::kCompute, host_.data(), product_.data(), product_bytes());
    return status.ok() ? device_.Synchronize() : status;
  }

  // The hash of the products as they are numbered in `a_`, whose row 0 lies at `first`.
  std::uint64_t HashFrom(std::int64_t first) const {
    std::uint64_t hash = 0xcbf29ce484222325u;
    for (std::int64_t i = 0; i < rows_; ++i) {
      const char* row = host_.data() + (first + i) % rows_ * bias_bytes();
      for (std::int64_t column = 0; column < shape_.out_features; ++column) {
        std::uint32_t word;
        std::memcpy(&word, row + column * sizeof(word), sizeof(word));
        hash = Mix(hash, word);
      }
    }
    return hash;
  }

  Device& device_;
  MatmulDevice& matmuls_;
  MatmulShape shape_;
  const std::int64_t rows_;
  GrowingBuffer host_;
  GrowingBuffer a_, moved_, b_, bias_, product_;
};

}  // namespace

absl::StatusOr<MatmulBlocks> ProbeAlgorithms(Device& device, MatmulDevice& matmuls,
                                             const MatmulShape& shape,
                                             std::span<const std::int64_t> block_rows) {
  for (std::int64_t rows : block_rows) ATTENTION_CHECK(block_rows.back() % rows == 0);
  Probe probe(device, matmuls, shape, block_rows.back());
  if (absl::Status status = probe.Begin(); !status.ok()) return status;
  for (const bool has_bias : {true, false}) {
    std::vector<BlockCandidates> sizes;
    for (std::int64_t rows : block_rows) {
      auto size = probe.Try(rows, has_bias);
      if (!size.ok()) return size.status();
      sizes.push_back(*std::move(size));
    }
    MatmulBlocks blocks{ChooseAlgorithms(sizes), has_bias};
    if (!blocks.sizes.empty()) return blocks;
  }
  return absl::UnimplementedError(absl::StrCat(
      "no algorithm of the matrix library gives a row of ", std::string(DTypeName(shape.dtype)),
      " the same bits at every place: in_features ", shape.in_features, ", out_features ",
      shape.out_features));
}

}  // namespace attention::cuda
