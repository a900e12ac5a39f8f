#include "tests/benchmark/cuda/normal_values.h"

#include <algorithm>
#include <cstring>
#include <random>
#include <vector>

namespace attention::bench {
namespace {

constexpr std::int64_t kTableSize = 1048573;

const std::vector<char>& TableOf(DType dtype) {
  static const auto make = [](DType of) {
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    std::vector<char> table(kTableSize * DTypeBytes(of));
    for (std::int64_t i = 0; i < kTableSize; ++i) StoreElement(table.data(), of, i, normal(random));
    return table;
  };
  static const std::vector<char> floats = make(DType::kFloat32);
  static const std::vector<char> halves = make(DType::kFloat16);
  static const std::vector<char> bfloats = make(DType::kBFloat16);
  return dtype == DType::kFloat32 ? floats : dtype == DType::kFloat16 ? halves : bfloats;
}

}  // namespace

void FillNormal(DType dtype, std::int64_t count, std::uint32_t seed, void* out) {
  const std::vector<char>& table = TableOf(dtype);
  const auto element = static_cast<std::int64_t>(DTypeBytes(dtype));
  auto* to = static_cast<char*>(out);
  std::int64_t from = std::int64_t{seed} * 104729 % kTableSize;
  while (count > 0) {
    const std::int64_t piece = std::min(count, kTableSize - from);
    std::memcpy(to, table.data() + from * element, piece * element);
    to += piece * element;
    count -= piece;
    from = 0;
  }
}

}  // namespace attention::bench
