#include "server/engine/sliced_attention.h"

#include <gtest/gtest.h>

#include <optional>
#include <random>

#include "server/base/error_reason.h"
#include "server/cache/kv_cache_factory.h"
#include "server/domain/row_checksums.h"
#include "tests/support/fake_clock.h"
#include "tests/support/forwarding_backend.h"

namespace attention::server {
namespace {

constexpr int kHeads = 4;
constexpr int kDim = 256;
constexpr std::int64_t kTokens = 2500;  // 20 MB of keys and values: three chunks

// Counts what is asked of a real backend, and yields once in the middle of each plan's run.
class YieldingBackend final : public testing::ForwardingBackend {
 public:
  absl::StatusOr<RunState> Run(AttentionPlan& plan,
                               const std::atomic<bool>* should_yield) override {
    if (!run_status.ok()) return run_status;
    if (should_yield->load() && ++num_runs % 2 == 1) return RunState::kYielded;
    return real().Run(plan, nullptr);
  }
  absl::Status AppendKv(std::span<const KvAppendTask> tasks) override {
    for (const KvAppendTask& task : tasks) chunks.push_back(task.num_tokens);
    return real().AppendKv(tasks);
  }

  absl::Status run_status;
  int num_runs = 0;
  std::vector<std::int64_t> chunks;
};

class SlicedAttentionTest : public ::testing::Test {
 protected:
  SlicedAttentionTest() : rows_(kTokens * kHeads * kDim) {
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    for (float& value : rows_) value = normal(random);
  }

  std::shared_ptr<KvCache> NewCache() {
    return *factory_.Create({kHeads, kDim, kDim, DType::kFloat32}, 1, 0);
  }

  // Appends `num_tokens` from `position` on, and attends with the last token.
  std::unique_ptr<AttentionRequest> Request(const std::shared_ptr<KvCache>& cache,
                                            std::int64_t position, std::int64_t num_tokens,
                                            std::vector<float>* output) {
    output->assign(kHeads * kDim, -1.0f);
    SessionStep step;
    step.cache = cache;
    step.expected_position = position;
    const void* first = rows_.data() + position * kHeads * kDim;
    const RowsView tokens = DenseRows(first, DType::kFloat32, kHeads, kDim);
    step.append = StepAppend{num_tokens, tokens, tokens, {}, {}, {}};
    step.append->checksums = ChecksumRows(*step.append, {kHeads, kDim, kDim, DType::kFloat32});
    AttentionTask& task = step.attend.emplace().task;
    task.params = {kHeads, kHeads, kDim, kDim};
    task.params.softmax_scale = 0.05f;
    task.q_len = 1;
    task.q = DenseRows(static_cast<const void*>(rows_.data()), DType::kFloat32, kHeads, kDim);
    task.o = DenseRows(static_cast<void*>(output->data()), DType::kFloat32, kHeads, kDim);
    auto request = std::make_unique<AttentionRequest>();
    request->arrival = clock_.Now();
    request->steps.push_back(step);
    request->completion = [this](std::unique_ptr<AttentionRequest>, AttentionResult result) {
      ASSERT_FALSE(result_.has_value()) << "completed twice";
      result_ = std::move(result);
    };
    return request;
  }

  SlicedAttention Sliced(std::unique_ptr<AttentionRequest> request) {
    result_.reset();
    return SlicedAttention(backend_, clock_, metrics_, std::move(request), clock_.Now());
  }

  YieldingBackend backend_;
  FakeClock clock_;
  ServerMetrics metrics_;
  PagePool pool_{backend_.memory(), std::size_t{128} << 20, std::size_t{1} << 20};
  KvCacheFactory factory_{{{backend_, pool_}}, 64};
  std::vector<float> rows_;
  std::optional<AttentionResult> result_;
  std::atomic<bool> always_{true};
  std::atomic<bool> never_{false};
};

TEST_F(SlicedAttentionTest, SlicesChangeNoBit) {
  std::vector<float> whole;
  SlicedAttention at_once = Sliced(Request(NewCache(), 0, kTokens, &whole));
  EXPECT_TRUE(at_once.RunSlice(never_));
  EXPECT_EQ(at_once.progress(), 1);
  ASSERT_TRUE(result_->status.ok()) << result_->status;

  std::vector<float> sliced;
  auto cache = NewCache();
  SlicedAttention in_slices = Sliced(Request(cache, 0, kTokens, &sliced));
  int num_slices = 1;
  for (; !in_slices.RunSlice(always_); ++num_slices) EXPECT_LT(num_slices, 100);
  ASSERT_TRUE(result_->status.ok()) << result_->status;
  EXPECT_GE(num_slices, 5) << "three chunks and two runs";
  EXPECT_EQ(sliced, whole);
  EXPECT_EQ(cache->length(0), kTokens);
  EXPECT_EQ(metrics_.tokens_appended.value(), 2 * kTokens);
}

TEST_F(SlicedAttentionTest, ChunksEndOnGranulesOfPages) {
  std::vector<float> output;
  auto cache = NewCache();
  SlicedAttention first = Sliced(Request(cache, 0, 5, &output));
  ASSERT_TRUE(first.RunSlice(never_));
  backend_.chunks.clear();
  SlicedAttention second = Sliced(Request(cache, 5, kTokens - 5, &output));
  ASSERT_TRUE(second.RunSlice(never_));
  ASSERT_GE(backend_.chunks.size(), 2u);
  std::int64_t end = 5;
  for (std::size_t i = 0; i + 1 < backend_.chunks.size(); ++i) {
    end += backend_.chunks[i];
    EXPECT_EQ(end % kPageGranularity, 0) << "chunk " << i;
  }
}

TEST_F(SlicedAttentionTest, AFailureTakesTheAppendBack) {
  std::vector<float> output;
  auto cache = NewCache();
  backend_.run_status = absl::InternalError("device lost");
  SlicedAttention sliced = Sliced(Request(cache, 0, 100, &output));
  EXPECT_TRUE(sliced.RunSlice(never_));
  EXPECT_EQ(result_->status.code(), absl::StatusCode::kInternal);
  EXPECT_EQ(cache->length(0), 0);
  EXPECT_EQ(sliced.progress(), 0) << "nothing to pay for";
}

TEST_F(SlicedAttentionTest, GivingUpTakesTheAppendBack) {
  std::vector<float> output;
  auto cache = NewCache();
  SlicedAttention sliced = Sliced(Request(cache, 0, kTokens, &output));
  EXPECT_FALSE(sliced.RunSlice(always_));
  EXPECT_EQ(sliced.progress(), 0);
  sliced.Abandon(absl::CancelledError("gone"));
  EXPECT_EQ(result_->status.code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(cache->length(0), 0);
  EXPECT_EQ(metrics_.tokens_appended.value(), 0);
}

TEST_F(SlicedAttentionTest, AGapFailsTheStepOnly) {
  std::vector<float> output;
  SlicedAttention sliced = Sliced(Request(NewCache(), 7, 100, &output));
  EXPECT_TRUE(sliced.RunSlice(never_));
  ASSERT_TRUE(result_->status.ok());
  EXPECT_EQ(GetErrorDetail(result_->steps[0].status)->reason, "POSITION_MISMATCH");
  EXPECT_EQ(sliced.progress(), 0) << "nothing to pay for";
}

}  // namespace
}  // namespace attention::server
