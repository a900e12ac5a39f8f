// Projections against float64, and the promise that a row's bits are its own.
#include <gmock/gmock.h>

#include <cmath>
#include <cstring>
#include <random>

#include "kernels/base/thread_pool.h"
#include "kernels/cpu/block_matmul.h"
#include "kernels/cpu/cpu_projections.h"
#include "kernels/reference/reference_projection.h"
#include "tests/support/projection_problem.h"

namespace attention {
namespace {

using testing::Matrix;
using testing::RowsOf;
using testing::TaskOf;
using testing::ToleranceOf;

class ProjectionTest : public ::testing::Test {
 protected:
  std::shared_ptr<const PackedProjection> Pack(const Matrix& w, const Matrix* b = nullptr) {
    const ProjectionPart part = testing::PartOf(w, b);
    auto packed = projections_->Pack(w.columns, {&part, 1});
    EXPECT_TRUE(packed.ok()) << packed.status();
    return *packed;
  }
  ThreadPool pool_{2};
  std::unique_ptr<ProjectionBackend> projections_ = cpu::MakeCpuProjections(pool_);
};

TEST_F(ProjectionTest, IsAsExactAsThePlainComputation) {
  const DType kTypes[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16};
  std::uint32_t seed = 0;
  for (const auto& [rows, in, out] : {std::array<int, 3>{1, 64, 64},
                                      {7, 96, 50},
                                      {33, 130, 384},
                                      {70, 257, 19},
                                      {5, 1, 1},
                                      {300, 64, 300}}) {
    for (const DType w_type : kTypes) {
      for (const DType x_type : kTypes) {
        SCOPED_TRACE(::testing::Message() << rows << " x " << in << " x " << out << " of "
                                          << DTypeName(x_type) << " and " << DTypeName(w_type));
        const Matrix w(out, in, w_type, ++seed, 0.1f), b(1, out, w_type, ++seed);
        const Matrix x(rows, in, x_type, ++seed);
        const auto packed = Pack(w, &b);
        Matrix y(rows, out, x_type, ++seed);
        const ProjectionTask task = TaskOf(*packed, x, y.bytes.data(), x_type);
        ASSERT_TRUE(projections_->Project({&task, 1}).ok());
        std::vector<double> exact;
        const double tolerance = ToleranceOf(x, w, b, x_type, &exact);
        for (std::int64_t i = 0; i < rows * out; ++i) {
          ASSERT_NEAR(y.at(0, i), exact[i], tolerance) << "element " << i;
        }
      }
    }
  }
}

TEST_F(ProjectionTest, ARowsBitsDoNotDependOnItsCompany) {
  for (const auto& [in, out] :
       {std::array<int, 2>{64, 64}, {576, 960}, {768, 768}, {1000, 96}, {30, 50}, {2048, 272}}) {
    SCOPED_TRACE(::testing::Message() << in << " x " << out);
    const Matrix w(out, in, DType::kFloat32, 1), b(1, out, DType::kFloat32, 2);
    const Matrix x(301, in, DType::kFloat32, 3);
    const auto packed = Pack(w, &b);
    std::vector<float> together(x.rows * out), apart(x.rows * out);
    const ProjectionTask whole = TaskOf(*packed, x, together.data(), DType::kFloat32);
    ASSERT_TRUE(projections_->Project({&whole, 1}).ok());
    // One by one, then in uneven pieces of one call, then by one thread only.
    const ProjectionTask task = TaskOf(*packed, x, apart.data(), DType::kFloat32);
    for (std::int64_t row = 0; row < x.rows; ++row) {
      const ProjectionTask one = RowsOf(task, row, row + 1);
      ASSERT_TRUE(projections_->Project({&one, 1}).ok());
    }
    EXPECT_EQ(std::memcmp(together.data(), apart.data(), apart.size() * sizeof(float)), 0);
    std::fill(apart.begin(), apart.end(), NAN);
    std::vector<ProjectionTask> pieces;
    for (std::int64_t row = 0, count = 1; row < x.rows; row += count, count = count % 23 + 1) {
      pieces.push_back(RowsOf(task, row, std::min(x.rows, row + count)));
    }
    std::reverse(pieces.begin(), pieces.end());
    ASSERT_TRUE(projections_->Project(pieces).ok());
    EXPECT_EQ(std::memcmp(together.data(), apart.data(), apart.size() * sizeof(float)), 0);
    ThreadPool one_thread(1);
    const auto single = cpu::MakeCpuProjections(one_thread);
    std::fill(apart.begin(), apart.end(), NAN);
    ASSERT_TRUE(single->Project({&task, 1}).ok());
    EXPECT_EQ(std::memcmp(together.data(), apart.data(), apart.size() * sizeof(float)), 0);
  }
}

TEST_F(ProjectionTest, PackedPartsAreWhatTheyAreAlone) {
  const Matrix q(96, 64, DType::kFloat32, 1), k(32, 64, DType::kFloat32, 2);
  const Matrix bias(1, 32, DType::kFloat32, 3), x(9, 64, DType::kFloat32, 4);
  const ProjectionPart parts[] = {{96, q.dtype, q.bytes.data(), nullptr},
                                  {32, k.dtype, k.bytes.data(), bias.bytes.data()}};
  const auto packed = projections_->Pack(64, parts);
  ASSERT_TRUE(packed.ok());
  EXPECT_EQ((*packed)->out_features(), 128);
  EXPECT_LE((*packed)->bytes(), projections_->PackedBytes(64, 128));
  std::vector<float> y(9 * 128);
  const ProjectionTask task = TaskOf(**packed, x, y.data(), DType::kFloat32);
  ASSERT_TRUE(projections_->Project({&task, 1}).ok());
  std::vector<float> y_ref(9 * 128);
  const auto reference = reference::MakeReferenceProjections();
  const auto plain = reference->Pack(64, parts);
  const ProjectionTask same = TaskOf(**plain, x, y_ref.data(), DType::kFloat32);
  ASSERT_TRUE(reference->Project({&same, 1}).ok());
  for (std::size_t i = 0; i < y.size(); ++i) EXPECT_NEAR(y[i], y_ref[i], 1e-4);
}

TEST_F(ProjectionTest, WeightsComeBackAsTheyWere) {
  const Matrix w(300, 70, DType::kBFloat16, 1), b(1, 300, DType::kBFloat16, 2);
  const auto packed = Pack(w, &b);
  std::vector<float> weights(300 * 70), bias(300);
  ASSERT_TRUE(packed->Unpack(weights.data(), bias.data()).ok());
  for (std::int64_t i = 0; i < 300 * 70; ++i) ASSERT_EQ(weights[i], w.at(0, i));
  for (std::int64_t i = 0; i < 300; ++i) ASSERT_EQ(bias[i], b.at(0, i));
}

TEST_F(ProjectionTest, NaNStaysInItsRow) {
  const Matrix w(64, 32, DType::kFloat32, 1);
  Matrix x(20, 32, DType::kFloat32, 2);
  StoreElement(x.bytes.data(), DType::kFloat32, 7 * 32 + 3, NAN);
  const auto packed = Pack(w);
  std::vector<float> y(20 * 64);
  const ProjectionTask task = TaskOf(*packed, x, y.data(), DType::kFloat32);
  ASSERT_TRUE(projections_->Project({&task, 1}).ok());
  for (std::int64_t i = 0; i < 20 * 64; ++i) EXPECT_EQ(std::isnan(y[i]), i / 64 == 7) << i;
}

TEST_F(ProjectionTest, RotatesHeadsAtTheRowsPositions) {
  RotaryParams params;
  params.dim = 8;
  const Rotary rotary(params);
  const Matrix w(48, 16, DType::kFloat32, 1), x(37, 16, DType::kFloat32, 2);
  const auto packed = Pack(w);
  std::vector<float> plain(37 * 48), rotated(37 * 48);
  ProjectionTask task = TaskOf(*packed, x, plain.data(), DType::kFloat32);
  ASSERT_TRUE(projections_->Project({&task, 1}).ok());
  task.y = rotated.data();
  task.rotary = &rotary;
  task.num_rotary_heads = 3;
  task.rotary_head_dim = 12;
  task.first_position = 100;
  const ProjectionTask pieces[] = {RowsOf(task, 0, 5), RowsOf(task, 5, 37)};
  ASSERT_TRUE(projections_->Project(pieces).ok());
  std::vector<float> cos_sin(8);
  for (std::int64_t row = 0; row < 37; ++row) {
    rotary.Turn(100 + row, cos_sin.data());
    for (int head = 0; head < 3; ++head) rotary.Apply(cos_sin.data(), &plain[row * 48 + head * 12]);
  }
  EXPECT_EQ(plain, rotated);
}

TEST(BlockMatmulTest, BlocksFillUpWhenThatCostsLessThanSmallerOnes) {
  const cpu::BlockMatmul matmul(64, 64);
  ASSERT_FALSE(matmul.block_rows().empty());
  for (std::int64_t left = 1; left < 600; ++left) {
    const std::int64_t rows = matmul.RowsFor(left);
    EXPECT_GE(rows, 1);
    if (rows > left && rows != matmul.block_rows().front()) {
      EXPECT_LT(rows, 2 * left);
    }
  }
  EXPECT_EQ(matmul.RowsFor(10000), matmul.max_rows());
}

}  // namespace
}  // namespace attention
