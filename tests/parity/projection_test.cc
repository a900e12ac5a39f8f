// Projections of a backend against float64, and the promise that a row's bits are its own.
#include <gmock/gmock.h>

#include <array>
#include <cmath>
#include <cstring>
#include <utility>

#include "tests/parity/tested_backend.h"
#include "tests/support/projection_problem.h"

namespace attention::testing {
namespace {

class ProjectionTest : public BackendTest {
 protected:
  // The first target's: others have the same.
  void SetUp() override {
    AttentionBackend& backend = *targets().front().backend;
    projections_ = backend.projections();
    if (projections_ == nullptr) GTEST_SKIP() << backend.info().no_projections;
  }

  std::shared_ptr<const PackedProjection> Pack(const Matrix& w, const Matrix* b = nullptr) {
    const ProjectionPart part = PartOf(w, b);
    auto packed = projections_->Pack(w.columns, {&part, 1});
    EXPECT_TRUE(packed.ok()) << packed.status();
    return *packed;
  }
  std::vector<float> Project(const ProjectionTask& task) {
    std::vector<float> y(task.num_rows * task.projection->out_features(), NAN);
    ProjectionTask whole = task;
    whole.y = y.data();
    EXPECT_TRUE(projections_->Project({&whole, 1}).ok());
    return y;
  }

  ProjectionBackend* projections_ = nullptr;
};

ATTENTION_TEST_ON_BACKEND(ProjectionTest);

TEST_P(ProjectionTest, IsAsExactAsThePlainComputation) {
  std::uint32_t seed = 0;
  for (const auto& [rows, in, out] : tested().exact_projections) {
    for (const DType w_type : kDTypes) {
      for (const DType x_type : kDTypes) {
        for (const DType y_type : kDTypes) {
          SCOPED_TRACE(::testing::Message()
                       << rows << " x " << in << " x " << out << " of " << DTypeName(x_type)
                       << " and " << DTypeName(w_type) << " to " << DTypeName(y_type));
          const Matrix w(out, in, w_type, ++seed, 0.1f), b(1, out, w_type, ++seed);
          const Matrix x(rows, in, x_type, ++seed);
          const auto packed = Pack(w, &b);
          Matrix y(rows, out, y_type, ++seed);
          const ProjectionTask task = TaskOf(*packed, x, y.bytes.data(), y_type);
          ASSERT_TRUE(projections_->Project({&task, 1}).ok());
          std::vector<double> exact;
          const double tolerance = ToleranceOf(x, w, b, y_type, &exact);
          for (std::int64_t i = 0; i < rows * out; ++i) {
            ASSERT_NEAR(y.at(0, i), exact[i], tolerance) << "element " << i;
          }
        }
      }
    }
  }
}

TEST_P(ProjectionTest, ARowsBitsDoNotDependOnItsCompany) {
  for (const auto& [in, out] : tested().projection_shapes) {
    for (const auto& [w_type, x_type] : tested().projection_types) {
      SCOPED_TRACE(::testing::Message() << in << " x " << out << " of " << DTypeName(x_type)
                                        << " and " << DTypeName(w_type));
      const Matrix w(out, in, w_type, 1), b(1, out, w_type, 2),
          x(tested().projection_rows, in, x_type, 3);
      const auto packed = Pack(w, &b);
      const ProjectionTask task = TaskOf(*packed, x, nullptr, DType::kFloat32);
      const std::vector<float> together = Project(task);
      // One by one, in uneven pieces of one call, the last one first, then by another backend.
      std::vector<float> apart(together.size(), NAN);
      ProjectionTask target = task;
      target.y = apart.data();
      for (std::int64_t row = 0; row < x.rows; ++row) {
        const ProjectionTask one = RowsOf(target, row, row + 1);
        ASSERT_TRUE(projections_->Project({&one, 1}).ok());
      }
      EXPECT_EQ(std::memcmp(together.data(), apart.data(), apart.size() * sizeof(float)), 0);
      std::fill(apart.begin(), apart.end(), NAN);
      std::vector<ProjectionTask> pieces;
      for (std::int64_t row = 0, count = 1; row < x.rows; row += count, count = count % 23 + 1) {
        pieces.push_back(RowsOf(target, row, std::min(x.rows, row + count)));
      }
      std::reverse(pieces.begin(), pieces.end());
      ASSERT_TRUE(projections_->Project(pieces).ok());
      EXPECT_EQ(std::memcmp(together.data(), apart.data(), apart.size() * sizeof(float)), 0);
      const auto other = tested().make(targets().front());
      const ProjectionPart part = PartOf(w, &b);
      const auto again = other->projections()->Pack(in, {&part, 1});
      ASSERT_TRUE(again.ok()) << again.status();
      std::fill(apart.begin(), apart.end(), NAN);
      target.projection = again->get();
      ASSERT_TRUE(other->projections()->Project({&target, 1}).ok());
      EXPECT_EQ(std::memcmp(together.data(), apart.data(), apart.size() * sizeof(float)), 0);
    }
  }
}

TEST_P(ProjectionTest, PartsStandBesideEachOtherAsTheyAreAlone) {
  for (DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    const Matrix q(48, 64, dtype, 1), k(20, 64, dtype, 2);
    const Matrix bias(1, 20, dtype, 3), x(9, 64, dtype, 4);
    const ProjectionPart parts[] = {PartOf(q), PartOf(k, &bias)};
    const auto packed = projections_->Pack(64, parts);
    ASSERT_TRUE(packed.ok()) << packed.status();
    EXPECT_EQ((*packed)->out_features(), 68);
    EXPECT_LE((*packed)->bytes(), projections_->PackedBytes(64, 68));
    const std::vector<float> y = Project(TaskOf(**packed, x, nullptr, DType::kFloat32));
    std::vector<double> exact_q, exact_k;
    const Matrix zeros(1, 48, dtype, 5, 0.0f);
    const double q_tolerance = ToleranceOf(x, q, zeros, DType::kFloat32, &exact_q);
    const double k_tolerance = ToleranceOf(x, k, bias, DType::kFloat32, &exact_k);
    for (std::int64_t row = 0; row < 9; ++row) {
      for (int i = 0; i < 48; ++i) EXPECT_NEAR(y[row * 68 + i], exact_q[row * 48 + i], q_tolerance);
      for (int i = 0; i < 20; ++i) {
        EXPECT_NEAR(y[row * 68 + 48 + i], exact_k[row * 20 + i], k_tolerance);
      }
    }
  }
}

TEST_P(ProjectionTest, WeightsComeBackAsTheyWere) {
  const Matrix half(300, 70, DType::kFloat16, 1), b(1, 300, DType::kFloat16, 2);
  const Matrix brain(10, 70, DType::kBFloat16, 3);
  const ProjectionPart parts[] = {PartOf(half, &b), PartOf(brain)};
  for (std::size_t count : {1, 2}) {  // of one type, and of two
    const auto packed = projections_->Pack(70, {parts, count});
    ASSERT_TRUE(packed.ok()) << packed.status();
    std::vector<float> weights(310 * 70), bias(310);
    ASSERT_TRUE((*packed)->Unpack(weights.data(), bias.data()).ok());
    for (std::int64_t i = 0; i < 300 * 70; ++i) ASSERT_EQ(weights[i], half.at(0, i));
    for (std::int64_t i = 0; i < 300; ++i) ASSERT_EQ(bias[i], b.at(0, i));
    if (count == 1) continue;
    for (std::int64_t i = 0; i < 10 * 70; ++i) ASSERT_EQ(weights[300 * 70 + i], brain.at(0, i));
  }
}

TEST_P(ProjectionTest, RowsLieApartOnBothSides) {
  const Matrix w(24, 30, DType::kBFloat16, 1), x(6, 30, DType::kFloat32, 2);
  const auto packed = Pack(w);
  const std::vector<float> expected = Project(TaskOf(*packed, x, nullptr, DType::kFloat32));
  std::vector<float> wide_x(6 * 41, NAN), wide_y(6 * 29, -7.0f);
  for (int row = 0; row < 6; ++row) std::memcpy(&wide_x[row * 41], &x.bytes[row * 120], 120);
  ProjectionTask task = TaskOf(*packed, x, wide_y.data(), DType::kFloat32);
  task.x = wide_x.data();
  task.x_stride = 41;
  task.y_stride = 29;
  ASSERT_TRUE(projections_->Project({&task, 1}).ok());
  for (int row = 0; row < 6; ++row) {
    for (int i = 0; i < 29; ++i) {
      EXPECT_EQ(wide_y[row * 29 + i], i < 24 ? expected[row * 24 + i] : -7.0f);
    }
  }
}

TEST_P(ProjectionTest, TasksOfAllKindsShareACall) {
  const Matrix w(24, 30, DType::kBFloat16, 1), v(40, 50, DType::kFloat32, 2);
  const auto first = Pack(w), second = Pack(v);
  const Matrix x(3, 30, DType::kFloat32, 3), half(5, 30, DType::kBFloat16, 4);
  const Matrix other(2, 50, DType::kFloat16, 5);
  std::vector<ProjectionTask> tasks = {TaskOf(*first, x, nullptr, DType::kFloat32),
                                       TaskOf(*second, other, nullptr, DType::kFloat32),
                                       TaskOf(*first, half, nullptr, DType::kFloat32)};
  std::vector<std::vector<float>> alone, together;
  for (ProjectionTask& task : tasks) {
    alone.push_back(Project(task));
    together.emplace_back(alone.back().size());
  }
  for (std::size_t i = 0; i < tasks.size(); ++i) tasks[i].y = together[i].data();
  tasks.push_back(RowsOf(tasks[0], 0, 0));
  ASSERT_TRUE(projections_->Project(tasks).ok());
  EXPECT_EQ(alone, together);
  EXPECT_TRUE(projections_->Project({}).ok());
}

TEST_P(ProjectionTest, NonFiniteValuesStayInTheirRow) {
  for (const auto& [w_type, x_type] : {std::pair{DType::kFloat32, DType::kFloat32},
                                       {DType::kBFloat16, DType::kFloat32},
                                       {DType::kFloat16, DType::kFloat32},
                                       {DType::kBFloat16, DType::kBFloat16}}) {
    const Matrix w(40, 32, w_type, 1);
    Matrix x(20, 32, x_type, 2);
    StoreElement(x.bytes.data(), x_type, 7 * 32 + 3, NAN);
    StoreElement(x.bytes.data(), x_type, 9 * 32 + 5, INFINITY);
    const auto packed = Pack(w);
    const std::vector<float> y = Project(TaskOf(*packed, x, nullptr, DType::kFloat32));
    for (std::int64_t i = 0; i < 20 * 40; ++i) {
      EXPECT_EQ(std::isnan(y[i]), i / 40 == 7) << i;
      EXPECT_EQ(std::isinf(y[i]), i / 40 == 9) << i;
    }
  }
}

TEST_P(ProjectionTest, RowsOfAnyMagnitudePassUnchanged) {
  for (const DType w_type : {DType::kFloat16, DType::kBFloat16}) {
    Matrix w(16, 16, w_type, 1, 0.0f);
    for (int i = 0; i < 16; ++i) StoreElement(w.bytes.data(), w_type, i * 17, 1.0f);
    const auto packed = Pack(w);
    const float magnitudes[] = {1e30f, 3e4f, 7e4f, 1.0f, 1e-6f, 1e-30f, 0.0f};
    Matrix x(7, 16, DType::kFloat32, 2);
    auto* values = reinterpret_cast<float*>(x.bytes.data());
    for (int i = 0; i < 7 * 16; ++i) values[i] *= magnitudes[i / 16];
    const std::vector<float> y = Project(TaskOf(*packed, x, nullptr, DType::kFloat32));
    for (int i = 0; i < 7 * 16; ++i) EXPECT_EQ(y[i], values[i]) << DTypeName(w_type) << " " << i;
  }
}

TEST_P(ProjectionTest, RotatesHeadsAtTheRowsPositions) {
  for (const bool is_interleaved : {false, true}) {
    RotaryParams params;
    params.dim = 8;
    params.is_interleaved = is_interleaved;
    params.attention_factor = 1.25;
    const Rotary rotary(params);
    const Matrix w(48, 16, DType::kBFloat16, 1), x(37, 16, DType::kFloat32, 2);
    const auto packed = Pack(w);
    std::vector<float> plain = Project(TaskOf(*packed, x, nullptr, DType::kFloat32));
    std::vector<float> rotated(37 * 48);
    ProjectionTask task = TaskOf(*packed, x, rotated.data(), DType::kFloat32);
    task.rotary = &rotary;
    task.num_rotary_heads = 3;
    task.rotary_head_dim = 12;
    task.first_position = 100'000'000;
    const ProjectionTask pieces[] = {RowsOf(task, 0, 5), RowsOf(task, 5, 37)};
    ASSERT_TRUE(projections_->Project(pieces).ok());
    std::vector<float> cos_sin(8);
    for (std::int64_t row = 0; row < 37; ++row) {
      rotary.Turn(task.first_position + row, cos_sin.data());
      for (int head = 0; head < 3; ++head) {
        rotary.Apply(cos_sin.data(), &plain[row * 48 + head * 12]);
      }
    }
    for (std::size_t i = 0; i < plain.size(); ++i) {
      EXPECT_NEAR(rotated[i], plain[i], tested().rotary_error) << i;
    }
  }
}

}  // namespace
}  // namespace attention::testing
