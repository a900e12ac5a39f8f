#include "attention/client/tensor.h"

#include <gmock/gmock.h>

#include <bit>
#include <cmath>
#include <limits>

#include "client/internal/base/half.h"

namespace attention::client {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

TEST(NumElementsTest, MultipliesAndRefusesWhatHasNoProduct) {
  EXPECT_EQ(NumElements({2, 3, 4}), 24);
  EXPECT_EQ(NumElements({2, 0, 4}), 0);
  EXPECT_EQ(NumElements({2, -1}), -1);
  EXPECT_EQ(NumElements({std::int64_t{1} << 40, std::int64_t{1} << 40}), -1);
  EXPECT_EQ(NumElements({std::int64_t{1} << 40, std::int64_t{1} << 40, 0}), 0);
}

TEST(TensorViewTest, DefaultIsAbsent) {
  EXPECT_FALSE(TensorView().is_present());
  EXPECT_FALSE(Tensor().is_present());
}

TEST(TensorViewTest, LooksAtTheCallersFloats) {
  const std::vector<float> values = {1, 2, 3, 4, 5, 6};
  const TensorView view(values, {2, 3});
  EXPECT_EQ(view.data, values.data());
  EXPECT_EQ(view.dtype, DType::kFloat32);
  EXPECT_EQ(view.num_bytes(), 24u);
}

TEST(TensorViewTest, SpanOfAnotherSizeThanTheShapeHasNoData) {
  const std::vector<float> values = {1, 2, 3};
  EXPECT_EQ(TensorView(values, {2, 3}).data, nullptr);
  const std::vector<std::uint16_t> bits = {1, 2, 3};
  EXPECT_EQ(TensorView(bits, DType::kFloat16, {4}).data, nullptr);
  EXPECT_EQ(TensorView(bits, DType::kFloat32, {3}).data, nullptr);
  EXPECT_EQ(TensorView(bits, DType::kBFloat16, {3}).data, bits.data());
}

TEST(TensorTest, FloatsAreReadInPlace) {
  const Tensor tensor = Tensor::FromFloats(std::vector<float>{1, -2.5f}, {2});
  EXPECT_THAT(tensor.floats(), ElementsAre(1.0f, -2.5f));
  EXPECT_EQ(static_cast<const void*>(tensor.floats().data()), tensor.bytes().data());
  EXPECT_THAT(tensor.ToFloats(), ElementsAre(1.0f, -2.5f));
}

TEST(TensorTest, FloatsOfAnotherTypeAreEmpty) {
  const Tensor tensor = Tensor::FromFloats(std::vector<float>{1}, {1}, DType::kFloat16);
  EXPECT_THAT(tensor.floats(), IsEmpty());
  EXPECT_THAT(Tensor(DType::kBool, {1}, "\1").ToFloats(), IsEmpty());
}

TEST(TensorTest, NarrowsAndWidens) {
  const std::vector<float> values = {0, -0.0f, 1, -2, 0.5f, 65504, kInfinity, -kInfinity};
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16}) {
    const Tensor tensor = Tensor::FromFloats(values, {8}, dtype);
    EXPECT_EQ(tensor.bytes().size(), 16u);
    if (dtype == DType::kFloat16) {
      EXPECT_EQ(tensor.ToFloats(), values);
    }
    EXPECT_TRUE(std::signbit(tensor.ToFloats()[1]));
  }
}

TEST(TensorTest, CopiesShareTheirBytesAndOutliveTheOriginal) {
  auto tensor = std::make_unique<Tensor>(Tensor::FromFloats(std::vector<float>{1, 2}, {2}));
  const Tensor copy = *tensor;
  EXPECT_EQ(copy.bytes().data(), tensor->bytes().data());
  tensor.reset();
  EXPECT_THAT(copy.floats(), ElementsAre(1, 2));
}

TEST(TensorTest, WhatIsMovedFromIsAbsent) {
  Tensor tensor = Tensor::FromFloats(std::vector<float>{1, 2}, {2});
  const Tensor moved = std::move(tensor);
  EXPECT_THAT(moved.floats(), ElementsAre(1, 2));
  EXPECT_FALSE(tensor.is_present());  // NOLINT(bugprone-use-after-move): that is the question
  EXPECT_EQ(tensor.bytes().size(), 0u);
}

TEST(TensorTest, LooksAtMemoryThatItKeepsAlive) {
  auto memory = std::make_shared<std::vector<float>>(std::vector<float>{1, 2});
  const std::weak_ptr<std::vector<float>> watch = memory;
  {
    const std::string_view bytes(reinterpret_cast<const char*>(memory->data()), 8);
    const Tensor tensor(DType::kFloat32, {2}, bytes, std::move(memory));
    EXPECT_EQ(tensor.floats().data(), watch.lock()->data());
  }
  EXPECT_TRUE(watch.expired());
}

TEST(TensorTest, ViewOfATensorSeesItsBytes) {
  const Tensor tensor = Tensor::FromFloats(std::vector<float>{1, 2}, {1, 2}, DType::kBFloat16);
  const TensorView view = tensor.view();
  EXPECT_EQ(view.data, tensor.bytes().data());
  EXPECT_EQ(view.dtype, DType::kBFloat16);
  EXPECT_THAT(view.shape, ElementsAre(1, 2));
}

TEST(HalfTest, EveryFloat16SurvivesTheRoundTrip) {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float value = internal::FromFloat16(static_cast<std::uint16_t>(bits));
    const std::uint16_t back = internal::ToFloat16(value);
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(internal::FromFloat16(back)));
    } else {
      ASSERT_EQ(back, bits) << value;
    }
  }
}

TEST(HalfTest, EveryBFloat16SurvivesTheRoundTrip) {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float value = internal::FromBFloat16(static_cast<std::uint16_t>(bits));
    const std::uint16_t back = internal::ToBFloat16(value);
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(internal::FromBFloat16(back)));
    } else {
      ASSERT_EQ(back, bits) << value;
    }
  }
}

// Halfway between two neighbours goes to the even one, a hair beyond to the nearer.
TEST(HalfTest, RoundsToNearestEven) {
  for (std::uint16_t bits = 0; bits < 0x7bff; ++bits) {
    const float low = internal::FromFloat16(bits);
    const float high = internal::FromFloat16(static_cast<std::uint16_t>(bits + 1));
    const float middle = (low + high) / 2;  // exact: one more bit than a float16 has
    ASSERT_EQ(internal::ToFloat16(middle), bits + (bits & 1)) << middle;
    ASSERT_EQ(internal::ToFloat16(std::nextafter(middle, kInfinity)), bits + 1) << middle;
    ASSERT_EQ(internal::ToFloat16(std::nextafter(middle, 0.0f)), bits) << middle;
  }
  EXPECT_EQ(internal::ToFloat16(65519.996f), 0x7bff);
  EXPECT_EQ(internal::ToFloat16(65520.0f), 0x7c00);
  EXPECT_EQ(internal::ToBFloat16(std::bit_cast<float>(0x3f808000u)), 0x3f80);
  EXPECT_EQ(internal::ToBFloat16(std::bit_cast<float>(0x3f818000u)), 0x3f82);
  EXPECT_EQ(internal::ToBFloat16(std::bit_cast<float>(0x3f808001u)), 0x3f81);
}

TEST(DTypeTest, NamesAndSizes) {
  EXPECT_EQ(DTypeName(DType::kFloat32), "float32");
  EXPECT_EQ(DTypeName(DType::kFloat16), "float16");
  EXPECT_EQ(DTypeName(DType::kBFloat16), "bfloat16");
  EXPECT_EQ(DTypeName(DType::kBool), "bool");
  EXPECT_EQ(DTypeName(DType::kInt8), "int8");
  EXPECT_EQ(DTypeName(DType::kFloat8E4M3), "float8_e4m3");
  EXPECT_EQ(ElementBytes(DType::kFloat32), 4u);
  EXPECT_EQ(ElementBytes(DType::kFloat16), 2u);
  EXPECT_EQ(ElementBytes(DType::kBFloat16), 2u);
  EXPECT_EQ(ElementBytes(DType::kBool), 1u);
  EXPECT_EQ(ElementBytes(DType::kInt8), 1u);
  EXPECT_EQ(ElementBytes(DType::kFloat8E4M3), 1u);
}

}  // namespace
}  // namespace attention::client
