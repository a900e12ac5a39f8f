#include "kernels/cuda/projection/packed_matrix.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "kernels/base/divide.h"
#include "kernels/cuda/contract/page_layout.h"
#include "kernels/cuda/projection/matmul_probe.h"

namespace attention::cuda {
namespace {

constexpr std::size_t kAlignment = 256;
// Bytes of a copy: long enough for the bus to be busy, short enough to stay in memory.
constexpr std::size_t kStagingBytes = std::size_t{8} << 20;

std::int64_t RowsOf(std::span<const ProjectionPart> parts) {
  std::int64_t rows = 0;
  for (const ProjectionPart& part : parts) rows += part.out_features;
  return rows;
}

DType CommonType(std::span<const ProjectionPart> parts) {
  const bool is_common = std::all_of(parts.begin(), parts.end(), [&](const ProjectionPart& part) {
    return part.dtype == parts[0].dtype;
  });
  return is_common ? parts[0].dtype : DType::kFloat32;
}

// Copies a row of the parts, which lie one after another.
void CopyRow(std::span<const ProjectionPart> parts, std::int64_t row,
             const PackedMatrix::Shape& shape, char* to) {
  std::memset(to, 0, shape.row_bytes());
  for (const ProjectionPart& part : parts) {
    if (row >= part.out_features) {
      row -= part.out_features;
      continue;
    }
    const std::int64_t count = shape.in_features;
    if (part.dtype == shape.dtype) {
      const std::size_t bytes = count * DTypeBytes(shape.dtype);
      std::memcpy(to, static_cast<const char*>(part.weights) + row * bytes, bytes);
    } else {
      for (std::int64_t i = 0; i < count; ++i) {
        StoreElement(to, shape.dtype, i, LoadElement(part.weights, part.dtype, row * count + i));
      }
    }
    return;
  }
}

void CopyBias(std::span<const ProjectionPart> parts, float* to) {
  for (const ProjectionPart& part : parts) {
    for (std::int64_t i = 0; i < part.out_features; ++i) {
      *to++ = part.bias == nullptr ? 0.0f : LoadElement(part.bias, part.dtype, i);
    }
  }
}

}  // namespace

std::int64_t PackedMatrix::Shape::padded_in() const {
  return RoundUp(in_features, std::int64_t{kPadElements});
}
std::int64_t PackedMatrix::Shape::padded_out() const {
  return RoundUp(out_features, std::int64_t{kPadElements});
}
std::size_t PackedMatrix::Shape::row_bytes() const { return padded_in() * DTypeBytes(dtype); }
std::size_t PackedMatrix::Shape::weight_bytes() const {
  return RoundUp(padded_out() * row_bytes(), kAlignment);
}
std::size_t PackedMatrix::Shape::bias_bytes() const {
  return RoundUp(padded_out() * sizeof(float), kAlignment);
}
std::size_t PackedMatrix::Shape::bytes() const { return weight_bytes() + 2 * bias_bytes(); }

PackedMatrix::PackedMatrix(std::shared_ptr<WeightStore> store, const Shape& shape, char* data,
                           std::shared_ptr<const MatmulBlocks> blocks)
    : store_(std::move(store)), shape_(shape), data_(data), blocks_(std::move(blocks)) {}

PackedMatrix::~PackedMatrix() { store_->Free(data_, bytes()); }

absl::Status PackedMatrix::Unpack(float* weights, float* bias) const {
  return store_->Unpack(*this, weights, bias);
}

WeightStore::WeightStore(std::shared_ptr<Device> device, std::vector<std::int64_t> block_rows)
    : device_(std::move(device)),
      block_rows_(std::move(block_rows)),
      staging_(device_->host_memory()) {}

absl::StatusOr<std::shared_ptr<const PackedMatrix>> WeightStore::Pack(
    std::int64_t in_features, std::span<const ProjectionPart> parts) {
  const PackedMatrix::Shape shape{in_features, RowsOf(parts), CommonType(parts)};
  std::lock_guard<std::mutex> lock(mutex_);
  // Before the weights take their memory: the probe needs some, and gives it back.
  auto blocks = BlocksFor(shape);
  if (!blocks.ok()) return blocks.status();
  auto* data = static_cast<char*>(device_->memory().Allocate(shape.bytes()));
  if (data == nullptr) {
    return absl::ResourceExhaustedError(
        absl::StrCat("no device memory for ", shape.bytes(), " bytes of a projection's weights"));
  }
  auto matrix = std::make_shared<const PackedMatrix>(shared_from_this(), shape, data, *blocks);
  if (absl::Status status = Fill(shape, parts, data); !status.ok()) return status;
  return matrix;
}

absl::Status WeightStore::Fill(const PackedMatrix::Shape& shape,
                               std::span<const ProjectionPart> parts, char* data) {
  absl::Status status = Upload(data, shape.padded_out(), shape.row_bytes(),
                               [&](std::int64_t first, std::int64_t count, char* host) {
                                 for (std::int64_t i = 0; i < count; ++i) {
                                   CopyRow(parts, first + i, shape, host + i * shape.row_bytes());
                                 }
                               });
  if (!status.ok()) return status;
  // The bias, and the zeros behind it.
  std::vector<float> biases(2 * shape.bias_bytes() / sizeof(float), 0.0f);
  CopyBias(parts, biases.data());
  return Upload(data + shape.weight_bytes(), static_cast<std::int64_t>(biases.size()),
                sizeof(float), [&](std::int64_t first, std::int64_t count, char* host) {
                  std::memcpy(host, biases.data() + first, count * sizeof(float));
                });
}

absl::Status WeightStore::Unpack(const PackedMatrix& matrix, float* weights, float* bias) {
  const PackedMatrix::Shape& shape = matrix.shape();
  std::lock_guard<std::mutex> lock(mutex_);
  absl::Status status =
      Download(matrix.weights(), shape.out_features, shape.row_bytes(),
               [&](std::int64_t first, std::int64_t count, char* host) {
                 for (std::int64_t i = 0; i < count; ++i) {
                   float* to = weights + (first + i) * shape.in_features;
                   for (std::int64_t in = 0; in < shape.in_features; ++in) {
                     to[in] = LoadElement(host + i * shape.row_bytes(), shape.dtype, in);
                   }
                 }
               });
  if (!status.ok()) return status;
  return Download(reinterpret_cast<const char*>(matrix.bias()), shape.out_features, sizeof(float),
                  [&](std::int64_t first, std::int64_t count, char* host) {
                    std::memcpy(bias + first, host, count * sizeof(float));
                  });
}

absl::Status WeightStore::Upload(char* to, std::int64_t num_rows, std::size_t row_bytes,
                                 const RowsUser& fill) {
  const auto run = static_cast<std::int64_t>(std::max(std::size_t{1}, kStagingBytes / row_bytes));
  if (absl::Status status = staging_.Reserve(std::min(run, num_rows) * row_bytes); !status.ok()) {
    return status;
  }
  for (std::int64_t first = 0; first < num_rows; first += run) {
    const std::int64_t count = std::min(run, num_rows - first);
    fill(first, count, staging_.data());
    absl::Status status = device_->CopyToDevice(Stream::kCompute, to + first * row_bytes,
                                                staging_.data(), count * row_bytes);
    if (status.ok()) status = device_->Synchronize();
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status WeightStore::Download(const char* from, std::int64_t num_rows, std::size_t row_bytes,
                                   const RowsUser& use) {
  const auto run = static_cast<std::int64_t>(std::max(std::size_t{1}, kStagingBytes / row_bytes));
  if (absl::Status status = staging_.Reserve(std::min(run, num_rows) * row_bytes); !status.ok()) {
    return status;
  }
  for (std::int64_t first = 0; first < num_rows; first += run) {
    const std::int64_t count = std::min(run, num_rows - first);
    absl::Status status = device_->CopyToHost(Stream::kCompute, staging_.data(),
                                              from + first * row_bytes, count * row_bytes);
    if (status.ok()) status = device_->Synchronize();
    if (!status.ok()) return status;
    use(first, count, staging_.data());
  }
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<const MatmulBlocks>> WeightStore::BlocksFor(
    const PackedMatrix::Shape& shape) {
  const MatmulShape key{0, shape.padded_in(), shape.padded_out(), shape.dtype};
  if (auto known = blocks_[key].lock()) return known;
  std::erase_if(blocks_, [](const auto& entry) { return entry.second.expired(); });
  auto matmuls = device_->matmuls();
  if (!matmuls.ok()) return matmuls.status();
  auto blocks = ProbeAlgorithms(*device_, **matmuls, key, block_rows_);
  if (!blocks.ok()) return blocks.status();
  auto shared = std::make_shared<const MatmulBlocks>(*std::move(blocks));
  blocks_[key] = shared;
  return shared;
}

}  // namespace attention::cuda
