#include "client/loadgen/tensor_pool.h"

#include <algorithm>
#include <cstring>
#include <random>
#include <utility>

namespace attention::loadgen {

client::DType ToClientDType(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return client::DType::kFloat32;
    case DType::kFloat16:
      return client::DType::kFloat16;
    case DType::kBFloat16:
      return client::DType::kBFloat16;
    case DType::kInt8:
      return client::DType::kInt8;
    case DType::kFloat8E4M3:
      return client::DType::kFloat8E4M3;
  }
  return client::DType::kFloat32;
}

TensorPool::TensorPool(DType dtype, std::int64_t max_elements, std::uint64_t seed)
    : dtype_(dtype), bytes_(static_cast<std::size_t>(kPeriod + max_elements) * DTypeBytes(dtype)) {
  std::mt19937_64 random(seed);
  for (std::int64_t i = 0; i < kPeriod; ++i) {
    const double uniform = static_cast<double>(random() >> 11) * 0x1p-52 - 1;  // [-1, 1)
    StoreElement(bytes_.data(), dtype, i, static_cast<float>(uniform * kMaxMagnitude));
  }
  const std::size_t period_bytes = static_cast<std::size_t>(kPeriod) * DTypeBytes(dtype);
  for (std::size_t filled = period_bytes; filled < bytes_.size();) {
    const std::size_t chunk = std::min(period_bytes, bytes_.size() - filled);
    std::memcpy(bytes_.data() + filled, bytes_.data(), chunk);
    filled += chunk;
  }
}

const void* TensorPool::At(std::int64_t offset) const {
  return bytes_.data() + static_cast<std::size_t>(offset % kPeriod) * DTypeBytes(dtype_);
}

client::TensorView TensorPool::View(std::int64_t offset, client::Shape shape) const {
  return client::TensorView(At(offset), ToClientDType(dtype_), std::move(shape));
}

std::vector<std::uint8_t> TensorPool::Gather(std::int64_t offset, std::int64_t num_elements) const {
  const std::size_t element_bytes = DTypeBytes(dtype_);
  std::vector<std::uint8_t> gathered(static_cast<std::size_t>(num_elements) * element_bytes);
  for (std::int64_t done = 0; done < num_elements;) {
    const std::int64_t chunk = std::min(num_elements - done, kPeriod - (offset + done) % kPeriod);
    std::memcpy(gathered.data() + static_cast<std::size_t>(done) * element_bytes, At(offset + done),
                static_cast<std::size_t>(chunk) * element_bytes);
    done += chunk;
  }
  return gathered;
}

}  // namespace attention::loadgen
