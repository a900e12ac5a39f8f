#include "tests/simt/primitives.h"

#include <cstring>

#include "tests/simt/element_table.h"

namespace attention::cuda::simt_primitives {
namespace {

using simt::kWarpThreads;

struct LoadOperands {
  const void* row;  // that the lane names
  std::uint32_t* out;
};

// Lane i gets elements (i / 4, 2 (i % 4)) and the one beside it of each matrix; transposed: the one
// below it, of the transposed matrix.
template <bool kIsTransposed>
void LoadAll(void* const (&all)[kWarpThreads]) {
  for (int matrix = 0; matrix < 4; ++matrix) {
    std::uint16_t elements[8][8];
    for (int row = 0; row < 8; ++row) {
      std::memcpy(elements[row], static_cast<LoadOperands*>(all[matrix * 8 + row])->row, 16);
    }
    for (int lane = 0; lane < kWarpThreads; ++lane) {
      const int row = lane / 4, column = lane % 4 * 2;
      const std::uint32_t first = kIsTransposed ? elements[column][row] : elements[row][column];
      const std::uint32_t second =
          kIsTransposed ? elements[column + 1][row] : elements[row][column + 1];
      static_cast<LoadOperands*>(all[lane])->out[matrix] = first | second << 16;
    }
  }
}

struct MmaOperands {
  float* c;
  const std::uint32_t* a;
  std::uint32_t b[2];
};

template <DType kType>
void MultiplyAll(void* const (&all)[kWarpThreads]) {
  const float* floats = simt::FloatsOf(kType).data();
  float a[16][16], b[16][8];
  for (int lane = 0; lane < kWarpThreads; ++lane) {
    const auto& mine = *static_cast<MmaOperands*>(all[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i) {
      const int row = g + 8 * (i % 2), column = 2 * t + 8 * (i / 2);
      a[row][column] = floats[mine.a[i] & 0xffffu];
      a[row][column + 1] = floats[mine.a[i] >> 16];
    }
    for (int i = 0; i < 2; ++i) {
      b[2 * t + 8 * i][g] = floats[mine.b[i] & 0xffffu];
      b[2 * t + 8 * i + 1][g] = floats[mine.b[i] >> 16];
    }
  }
  // Products of 16-bit floats are exact in double, and so, nearly always, are sums of 16.
  for (int lane = 0; lane < kWarpThreads; ++lane) {
    auto& mine = *static_cast<MmaOperands*>(all[lane]);
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + 8 * (i / 2), column = lane % 4 * 2 + i % 2;
      double sum = mine.c[i];
      for (int k = 0; k < 16; ++k) sum += static_cast<double>(a[row][k]) * b[k][column];
      mine.c[i] = static_cast<float>(sum);
    }
  }
}

}  // namespace

void LoadMatrix4(std::uint32_t (&out)[4], const void* shared, bool is_transposed) {
  LoadOperands mine{shared, out};
  if (is_transposed) {
    simt::Current().Meet({"ldmatrix.trans", &mine}, LoadAll<true>);
  } else {
    simt::Current().Meet({"ldmatrix", &mine}, LoadAll<false>);
  }
}

void Mma(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1,
         DType dtype) {
  MmaOperands mine{c, a, {b0, b1}};
  if (dtype == DType::kFloat16) {
    simt::Current().Meet({"mma.f16", &mine}, MultiplyAll<DType::kFloat16>);
  } else {
    simt::Current().Meet({"mma.bf16", &mine}, MultiplyAll<DType::kBFloat16>);
  }
}

}  // namespace attention::cuda::simt_primitives
