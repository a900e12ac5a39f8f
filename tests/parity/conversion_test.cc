// Conversions to the bit: what a cache holds reaches the output unchanged, and outputs are rounded
// to nearest, ties to even. With a softmax_scale of 0 the only key has a weight of exactly 1.
#include <gmock/gmock.h>

#include <bit>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "kernels/cuda/cuda_backend.h"
#include "tests/simt/simt_device.h"
#include "tests/support/cpu_targets.h"

namespace attention::testing {
namespace {

// Elements at a time: as many as the narrowest backend takes.
constexpr int kCount = 256;

struct Target {
  std::string name;
  AttentionBackend* backend;
};

// The CPU backend for each instruction set, and the CUDA backend's kernels executed on the host.
std::vector<Target> Targets() {
  static auto* cuda = cuda::MakeCudaBackend(simt::MakeSimtDevice(/*seed=*/1)).release();
  std::vector<Target> targets;
  for (const TargetBackend& target : CpuTargets()) {
    targets.push_back({target.name, target.backend.get()});
  }
  targets.push_back({"cuda", cuda});
  return targets;
}

// The output, as floats, of attention over one key whose value is `values` (of `from`, raw bytes).
std::vector<float> PassThrough(AttentionBackend& backend, const void* values, int count, DType from,
                               DType cache, DType to) {
  std::vector<float> q(1, 1.0f), out_bits(count);
  const std::vector<float> k(1, 1.0f);
  AttentionTask task;
  task.params = {.num_q_heads = 1, .num_kv_heads = 1, .head_dim_qk = 1, .head_dim_v = count};
  task.params.dtype = to;
  task.params.kv_dtype = cache;
  task.params.softmax_scale = 0;
  task.q_len = task.kv_len = 1;
  task.q = DenseRows(static_cast<const void*>(q.data()), DType::kFloat32, 1, 1);
  task.k = DenseRows(static_cast<const void*>(k.data()), DType::kFloat32, 1, 1);
  task.v = DenseRows(values, from, 1, count);
  task.o = DenseRows(static_cast<void*>(out_bits.data()), to, 1, count);
  auto plan = backend.Plan({&task, 1});
  EXPECT_TRUE(plan.ok()) << plan.status();
  EXPECT_TRUE(backend.Run(**plan).ok());
  std::vector<float> out(count);
  for (int i = 0; i < count; ++i) out[i] = LoadElement(out_bits.data(), to, i);
  return out;
}

// Zeros of either sign are one.
bool IsSame(float a, float b) { return a == b || (std::isnan(a) && std::isnan(b)); }

TEST(ConversionTest, EverySixteenBitValueReachesAFloat32Output) {
  for (const Target& target : Targets()) {
    for (DType dtype : {DType::kFloat16, DType::kBFloat16}) {
      for (std::uint32_t first = 0; first < 0x10000; first += kCount) {
        std::vector<std::uint16_t> values(kCount);
        for (int i = 0; i < kCount; ++i) values[i] = static_cast<std::uint16_t>(first + i);
        const auto out =
            PassThrough(*target.backend, values.data(), kCount, dtype, dtype, DType::kFloat32);
        for (int i = 0; i < kCount; ++i) {
          ASSERT_TRUE(IsSame(out[i], LoadElement(values.data(), dtype, i)))
              << target.name << " " << DTypeName(dtype) << " " << values[i] << " gives " << out[i];
        }
      }
    }
  }
}

// A value of all bytes but those of NaN: with 448 among them its scale is 1.
TEST(ConversionTest, EveryFloat8ValueReachesAFloat32Output) {
  std::vector<float> values;
  for (int byte = 0; byte < 256; ++byte) {
    if (byte % 128 != 127) values.push_back(Float8E4M3ToFloat(static_cast<std::uint8_t>(byte)));
  }
  for (const Target& target : Targets()) {
    const auto out = PassThrough(*target.backend, values.data(), static_cast<int>(values.size()),
                                 DType::kFloat32, DType::kFloat8E4M3, DType::kFloat32);
    for (std::size_t i = 0; i < values.size(); ++i) {
      ASSERT_EQ(out[i], values[i]) << target.name;
    }
  }
}

// Random bits, and the ties between neighbours of both types.
std::vector<float> HardFloats() {
  std::mt19937 random(1);
  std::vector<float> values = {0.0f,
                               65504.0f,
                               65519.9f,
                               65520.0f,
                               0x1p-24f,
                               0x1p-25f,
                               0x1.8p-25f,
                               std::numeric_limits<float>::max(),
                               std::numeric_limits<float>::infinity(),
                               -std::numeric_limits<float>::infinity(),
                               std::numeric_limits<float>::quiet_NaN()};
  while (values.size() < 16 * kCount) {
    const std::uint32_t bits = static_cast<std::uint32_t>(random());
    values.push_back(std::bit_cast<float>(bits));
    values.push_back(std::bit_cast<float>((bits & 0xffff0000u) | 0x8000u));      // ties of bfloat16
    values.push_back(std::bit_cast<float>((bits & 0x0fffe000u) | 0x38001000u));  // of float16
  }
  values.resize(16 * kCount);
  return values;
}

TEST(ConversionTest, OutputsAreRoundedToNearestEven) {
  const std::vector<float> values = HardFloats();
  for (const Target& target : Targets()) {
    for (DType dtype : {DType::kFloat16, DType::kBFloat16}) {
      for (std::size_t first = 0; first < values.size(); first += kCount) {
        const auto out = PassThrough(*target.backend, &values[first], kCount, DType::kFloat32,
                                     DType::kFloat32, dtype);
        for (int i = 0; i < kCount; ++i) {
          std::uint32_t rounded = 0;
          StoreElement(&rounded, dtype, 0, values[first + i]);
          const float expected = LoadElement(&rounded, dtype, 0);
          ASSERT_TRUE(IsSame(out[i], expected)) << target.name << " " << DTypeName(dtype) << " "
                                                << values[first + i] << " gives " << out[i];
        }
      }
    }
  }
}

TEST(ConversionTest, RowsAreRoundedIntoACache) {
  const std::vector<float> values = HardFloats();
  for (const Target& target : Targets()) {
    for (DType dtype : {DType::kFloat16, DType::kBFloat16}) {
      const auto out = PassThrough(*target.backend, values.data(), kCount, DType::kFloat32, dtype,
                                   DType::kFloat32);
      for (int i = 0; i < kCount; ++i) {
        std::uint32_t rounded = 0;
        StoreElement(&rounded, dtype, 0, values[i]);
        ASSERT_TRUE(IsSame(out[i], LoadElement(&rounded, dtype, 0)))
            << target.name << " " << DTypeName(dtype) << " " << values[i] << " gives " << out[i];
      }
    }
  }
}

}  // namespace
}  // namespace attention::testing
