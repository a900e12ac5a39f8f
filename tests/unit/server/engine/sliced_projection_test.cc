#include "server/engine/sliced_projection.h"

#include <gmock/gmock.h>

#include "kernels/reference/reference_projection.h"

namespace attention::server {
namespace {

using ::testing::ElementsAre;

constexpr std::int64_t kFeatures = 4;
constexpr double kRowFlops = 2 * kFeatures * kFeatures;

// Computes, and notes the rows of each call.
class RecordingProjections final : public ProjectionBackend {
 public:
  explicit RecordingProjections(double chunk_flops) : chunk_flops_(chunk_flops) {}

  absl::StatusOr<std::shared_ptr<const PackedProjection>> Pack(
      std::int64_t in_features, std::span<const ProjectionPart> parts) override {
    return real_->Pack(in_features, parts);
  }
  std::size_t PackedBytes(std::int64_t in_features, std::int64_t out_features) const override {
    return real_->PackedBytes(in_features, out_features);
  }
  double chunk_flops() const override { return chunk_flops_; }
  absl::Status Project(std::span<const ProjectionTask> tasks) override {
    calls.emplace_back();
    for (const ProjectionTask& task : tasks) calls.back().push_back(task.num_rows);
    return real_->Project(tasks);
  }

  std::vector<std::vector<std::int64_t>> calls;

 private:
  const double chunk_flops_;
  const std::unique_ptr<ProjectionBackend> real_ = reference::MakeReferenceProjections();
};

class SlicedProjectionTest : public ::testing::Test {
 protected:
  // The calls for tasks of so many rows, which yield whenever they may.
  std::vector<std::vector<std::int64_t>> CallsFor(double chunk_rows,
                                                  std::vector<std::int64_t> rows) {
    RecordingProjections backend(chunk_rows * kRowFlops);
    const std::vector<float> w(kFeatures * kFeatures, 1.0f);
    const ProjectionPart part{kFeatures, DType::kFloat32, w.data(), nullptr};
    const auto packed = *backend.Pack(kFeatures, {&part, 1});
    std::vector<ProjectionTask> tasks;
    std::vector<std::vector<float>> x, y;
    for (std::int64_t count : rows) {
      x.emplace_back(count * kFeatures, 1.0f);
      y.emplace_back(count * kFeatures);
      tasks.push_back({packed.get(), count, x.back().data(), DType::kFloat32, kFeatures,
                       y.back().data(), DType::kFloat32, kFeatures});
    }
    SlicedProjection sliced(&backend, tasks);
    const std::atomic<bool> should_yield{true};
    while (*sliced.Run(should_yield) == RunState::kYielded) {
    }
    EXPECT_EQ(sliced.flops_done(), sliced.flops());
    for (const std::vector<float>& rows_of_task : y) {
      EXPECT_THAT(rows_of_task, ::testing::Each(kFeatures));
    }
    return backend.calls;
  }
};

TEST_F(SlicedProjectionTest, LongTasksAreCutIntoTheChunksThatTheBackendWants) {
  EXPECT_THAT(CallsFor(32, {70}), ElementsAre(ElementsAre(32), ElementsAre(32), ElementsAre(6)));
  EXPECT_THAT(CallsFor(1000, {70}), ElementsAre(ElementsAre(70)));
}

TEST_F(SlicedProjectionTest, AChunkHasEnoughRowsForAPassOverTheWeightsAndNotTooMany) {
  EXPECT_THAT(CallsFor(1, {20}), ElementsAre(ElementsAre(16), ElementsAre(4)));
  EXPECT_THAT(CallsFor(1e9, {1030}), ElementsAre(ElementsAre(1024, 6)));
}

TEST_F(SlicedProjectionTest, ShortTasksFillAChunkTogether) {
  EXPECT_THAT(CallsFor(32, {10, 0, 20, 5, 3}), ElementsAre(ElementsAre(10, 20, 5), ElementsAre(3)));
}

}  // namespace
}  // namespace attention::server
