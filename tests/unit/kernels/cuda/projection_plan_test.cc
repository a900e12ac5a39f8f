#include "kernels/cuda/projection/projection_plan.h"

#include <gmock/gmock.h>

#include <algorithm>

#include "tests/simt/simt_device.h"
#include "tests/simt/simt_matmuls.h"
#include "tests/support/projection_problem.h"

namespace attention::cuda {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;

constexpr std::size_t kEnough = std::size_t{1} << 30;
constexpr std::int64_t kIn = 20, kOut = 40;

class ProjectionPlanTest : public ::testing::Test {
 protected:
  std::shared_ptr<const PackedMatrix> Pack(DType dtype, std::int64_t in = kIn,
                                           std::int64_t out = kOut) {
    const testing::Matrix w(out, in, dtype, ++seed_);
    const ProjectionPart part = testing::PartOf(w);
    auto packed = store_->Pack(in, {&part, 1});
    EXPECT_TRUE(packed.ok()) << packed.status();
    return *packed;
  }
  static ProjectionTask Task(const std::shared_ptr<const PackedMatrix>& matrix,
                             std::int64_t num_rows, DType x_dtype) {
    ProjectionTask task;
    task.projection = matrix.get();
    task.num_rows = num_rows;
    task.x_dtype = x_dtype;
    return task;
  }

  std::shared_ptr<Device> device_ = simt::MakeSimtDevice(1);
  std::shared_ptr<WeightStore> store_ =
      std::make_shared<WeightStore>(device_, std::vector<std::int64_t>{4, 8});
  std::uint32_t seed_ = 0;
};

TEST_F(ProjectionPlanTest, TasksOfOneProjectionAndTypeShareAPass) {
  const auto a = Pack(DType::kFloat32), b = Pack(DType::kFloat32);
  const ProjectionTask tasks[] = {Task(a, 3, DType::kFloat32), Task(b, 2, DType::kFloat32),
                                  Task(a, 0, DType::kFloat32), Task(a, 5, DType::kFloat32),
                                  Task(a, 1, DType::kFloat16)};
  const std::vector<ProjectionRound> rounds = PlanProjections(tasks, kEnough);
  ASSERT_THAT(rounds, SizeIs(1));
  const std::vector<ProjectionPass>& passes = rounds[0].passes;
  ASSERT_THAT(passes, SizeIs(3));
  EXPECT_EQ(passes[0].matrix, a.get());
  EXPECT_EQ(passes[0].num_rows, 8);
  ASSERT_THAT(passes[0].pieces, SizeIs(2));
  EXPECT_EQ(passes[0].pieces[1].row, 3);
  EXPECT_EQ(passes[1].matrix, b.get());
  EXPECT_EQ(passes[2].x_dtype, DType::kFloat16);
}

TEST_F(ProjectionPlanTest, RowsThatTheTypeOfTheWeightsCannotHoldAreSplit) {
  using enum DType;
  for (DType dtype : {kFloat32, kFloat16, kBFloat16}) {
    EXPECT_EQ(SplitPartsOf(dtype, dtype), 1);
    EXPECT_EQ(SplitPartsOf(kFloat32, dtype), 1);
  }
  for (const auto& [weights, x] : {std::pair{kFloat16, kFloat32},
                                   {kBFloat16, kFloat32},
                                   {kFloat16, kBFloat16},
                                   {kBFloat16, kFloat16}}) {
    EXPECT_EQ(SplitPartsOf(weights, x), 3);
  }
  const auto matrix = Pack(kBFloat16);
  const ProjectionTask task = Task(matrix, 5, kFloat32);
  const ProjectionPass pass = PlanProjections({&task, 1}, kEnough)[0].passes[0];
  EXPECT_FALSE(pass.is_direct());
  EXPECT_EQ(pass.operand_rows(), 15) << "which share one pass over the weights";
}

TEST_F(ProjectionPlanTest, ARoundKeepsToItsBytes) {
  const auto matrix = Pack(DType::kFloat32);
  const ProjectionTask tasks[] = {Task(matrix, 1000, DType::kFloat32),
                                  Task(matrix, 30, DType::kFloat32)};
  constexpr std::size_t kBytes = std::size_t{200} << 10;
  std::int64_t row = 0, second = 0;
  for (const ProjectionRound& round : PlanProjections(tasks, kBytes)) {
    EXPECT_LE(round.scratch_bytes + round.upload_bytes + round.result_bytes, 2 * kBytes);
    for (const PassPiece& piece : round.passes[0].pieces) {
      std::int64_t& next = piece.task == tasks ? row : second;
      EXPECT_EQ(piece.first, next);
      next += piece.count;
    }
  }
  EXPECT_EQ(row, 1000);
  EXPECT_EQ(second, 30);
}

TEST_F(ProjectionPlanTest, RowsWiderThanARoundStillComeManyAtATime) {
  const auto matrix = Pack(DType::kFloat32);
  const ProjectionTask task = Task(matrix, 2 * kMinPassRows + 1, DType::kFloat32);
  EXPECT_THAT(PlanProjections({&task, 1}, 1), SizeIs(3));
}

TEST_F(ProjectionPlanTest, PlacesDoNotOverlapAndHoldWholeBlocks) {
  const auto matrix = Pack(DType::kFloat16);
  const ProjectionTask tasks[] = {Task(matrix, 5, DType::kFloat16),
                                  Task(matrix, 3, DType::kFloat32)};
  const ProjectionRound round = PlanProjections(tasks, kEnough)[0];
  const std::int64_t pitch = matrix->shape().padded_out() * 4;
  const ProjectionPass& direct = round.passes[0];
  const ProjectionPass& split = round.passes[1];
  EXPECT_EQ(direct.operand, kNoOffset);
  EXPECT_GE(split.product, direct.product + 8 * pitch) << "5 rows take a block of 8";
  EXPECT_GE(split.operand, split.product + 12 * pitch) << "9 rows take 8 and 4";
  EXPECT_GE(split.unscale, split.operand + 12 * matrix->shape().row_bytes());
  EXPECT_GE(round.scratch_bytes, split.unscale + 3 * sizeof(float));
  EXPECT_GE(split.x, direct.x + 8 * matrix->shape().row_bytes());
  EXPECT_THAT(round.split_items, SizeIs(3));
  EXPECT_THAT(round.finish_items, SizeIs(8));
}

TEST_F(ProjectionPlanTest, WeightsTakeWhatTheySayAndGiveItBack) {
  const std::size_t before = device_->memory().free_bytes();
  auto matrix = Pack(DType::kBFloat16, 100, 70);
  const std::size_t staging = before - device_->memory().free_bytes() - matrix->bytes();
  EXPECT_LT(matrix->bytes(), 112u * 80 * 2 + 2 * 80 * 4 + 3 * 256);
  auto another = Pack(DType::kBFloat16, 100, 70);
  EXPECT_EQ(&another->blocks(), &matrix->blocks()) << "layers of one shape are probed once";
  EXPECT_EQ(device_->memory().free_bytes(), before - staging - 2 * matrix->bytes());
  matrix.reset();
  another.reset();
  EXPECT_EQ(device_->memory().free_bytes(), before - staging);
}

TEST_F(ProjectionPlanTest, WeightsForWhichThereIsNoMemoryAreRefused) {
  const auto small =
      simt::MakeSimtDevice(1, /*has_wgmma=*/false, /*eager=*/{}, /*memory_bytes=*/1 << 20);
  const auto store = std::make_shared<WeightStore>(small, std::vector<std::int64_t>{4, 8});
  const testing::Matrix w(1000, 300, DType::kFloat32, 1);
  const ProjectionPart part = testing::PartOf(w);
  const auto packed = store->Pack(300, {&part, 1});
  EXPECT_EQ(packed.status().code(), absl::StatusCode::kResourceExhausted) << packed.status();
  EXPECT_THAT(std::string(packed.status().message()), HasSubstr("bytes"));
  EXPECT_EQ(small->memory().free_bytes(), std::size_t{1} << 20) << "nothing is left behind";
}

TEST_F(ProjectionPlanTest, TheChoiceTakesTheOneOrderThatAllSizesHave) {
  const auto store = std::make_shared<WeightStore>(device_, std::vector<std::int64_t>{4, 8, 32});
  const testing::Matrix w(kOut, kIn, DType::kFloat32, 1);
  const ProjectionPart part = testing::PartOf(w);
  const auto packed = *store->Pack(kIn, {&part, 1});
  std::vector<simt::SumOrder> orders;
  for (const BlockAlgorithm& block : packed->blocks()) {
    orders.push_back(static_cast<simt::SumOrder>(block.algorithm.code[0]));
  }
  // The library's favourites are refused or depend on the place; the next one sums large blocks in
  // another order than small ones.
  EXPECT_THAT(orders, ElementsAre(simt::SumOrder::kAscendingIfSmall,
                                  simt::SumOrder::kAscendingIfSmall, simt::SumOrder::kAscending));
}

}  // namespace
}  // namespace attention::cuda
