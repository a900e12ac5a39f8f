#include "server/engine/worker.h"

#include <gmock/gmock.h>

#include <deque>
#include <optional>

#include "server/base/error_reason.h"
#include "server/cache/kv_cache_factory.h"
#include "server/domain/row_checksums.h"
#include "tests/support/fake_clock.h"
#include "tests/support/forwarding_backend.h"

namespace attention::server {
namespace {

using ::testing::HasSubstr;

// A real backend that can be told to fail.
class FaultyBackend final : public testing::ForwardingBackend {
 public:
  absl::StatusOr<RunState> Run(AttentionPlan& plan,
                               const std::atomic<bool>* should_yield) override {
    if (throws) throw std::bad_alloc();
    if (!run_status.ok()) return run_status;
    return real().Run(plan, should_yield);
  }
  absl::Status Supports(const AttentionParams& params, std::int64_t kv_len) const override {
    if (kv_len > max_kv_len) return absl::UnimplementedError("too many keys");
    return real().Supports(params, kv_len);
  }
  absl::Status AppendKv(std::span<const KvAppendTask> tasks) override {
    append_calls.push_back(tasks.size());
    return real().AppendKv(tasks);
  }
  ProjectionBackend* projections() override { return &projections_; }

  // Counts what is projected at once.
  class CountingProjections final : public testing::ForwardingProjections {
   public:
    using ForwardingProjections::ForwardingProjections;
    absl::Status Project(std::span<const ProjectionTask> tasks) override {
      calls.push_back(tasks.size());
      return ForwardingProjections::Project(tasks);
    }
    std::vector<std::size_t> calls;
  };
  CountingProjections projections_{*real().projections()};

  std::int64_t max_kv_len = kMaxPosition;
  absl::Status run_status;
  bool throws = false;
  std::vector<std::size_t> append_calls;
};

constexpr int kDim = 4;

class WorkerTest : public ::testing::Test {
 protected:
  // One KV head, one query head; token t has key and value full of t + 1.
  SessionStep Step(const std::shared_ptr<KvCache>& cache, std::int64_t position,
                   std::int64_t num_tokens, int layer = 0) {
    std::vector<float>& rows = buffers_.emplace_back(num_tokens * kDim);
    for (std::int64_t i = 0; i < num_tokens * kDim; ++i) {
      rows[i] = static_cast<float>(position + i / kDim + 1);
    }
    std::vector<float>& o = buffers_.emplace_back(num_tokens * kDim, -1.0f);
    SessionStep step;
    step.cache = cache;
    step.layer = layer;
    step.expected_position = position;
    const RowsView tokens =
        DenseRows(static_cast<const void*>(rows.data()), DType::kFloat32, 1, kDim);
    step.append = StepAppend{num_tokens, tokens, tokens, {}, {}, {}};
    step.append->checksums = ChecksumRows(*step.append, {1, kDim, kDim, DType::kFloat32});
    AttentionTask& task = step.attend.emplace().task;
    task.params = {1, 1, kDim, kDim};
    // Uniform weights: the output is the mean of the values.
    task.params.softmax_scale = 0.0f;
    task.params.is_causal = true;
    task.q_len = num_tokens;
    task.q = tokens;
    task.o = DenseRows(static_cast<void*>(o.data()), DType::kFloat32, 1, kDim);
    return step;
  }

  std::unique_ptr<AttentionRequest> Request(std::vector<SessionStep> steps) {
    auto request = std::make_unique<AttentionRequest>();
    request->arrival = clock_.Now();
    request->steps = std::move(steps);
    const std::size_t index = results_.size();
    results_.emplace_back();
    request->completion = [this, index](std::unique_ptr<AttentionRequest>, AttentionResult result) {
      EXPECT_FALSE(results_[index].has_value()) << "completed twice";
      results_[index] = std::move(result);
    };
    return request;
  }

  void Execute(std::vector<std::unique_ptr<AttentionRequest>> requests) {
    worker_.Execute({std::move(requests), clock_.Now()});
  }
  template <typename... Requests>
  void ExecuteAll(Requests... requests) {
    std::vector<std::unique_ptr<AttentionRequest>> batch;
    (batch.push_back(std::move(requests)), ...);
    Execute(std::move(batch));
  }

  std::shared_ptr<KvCache> NewCache(int num_layers = 1) {
    return *factory_.Create({1, kDim, kDim, DType::kFloat32}, num_layers, 0);
  }
  static float FirstOutput(const SessionStep& step) {
    return *static_cast<const float*>(step.attend->task.o.data);
  }

  FaultyBackend backend_;
  FakeClock clock_;
  ServerMetrics metrics_;
  PagePool pool_{backend_.memory(), std::size_t{8} << 10, std::size_t{4} << 10};
  KvCacheFactory factory_{{{backend_, pool_}}, 16};
  Worker worker_{backend_, clock_, metrics_};
  std::deque<std::vector<float>> buffers_;
  std::vector<std::optional<AttentionResult>> results_;
};

TEST_F(WorkerTest, AStepAppendsThenAttendsOverAllOfItsTokens) {
  auto cache = NewCache();
  SessionStep step = Step(cache, 0, 3);
  ExecuteAll(Request({step}));
  ASSERT_TRUE(results_[0]->status.ok());
  EXPECT_TRUE(results_[0]->steps[0].status.ok());
  EXPECT_EQ(results_[0]->steps[0].position, 3);
  EXPECT_EQ(cache->length(0), 3);
  const auto* o = static_cast<const float*>(step.attend->task.o.data);
  EXPECT_FLOAT_EQ(o[0], 1.0f);
  EXPECT_FLOAT_EQ(o[kDim], 1.5f);
  EXPECT_FLOAT_EQ(o[2 * kDim], 2.0f);
}

TEST_F(WorkerTest, StepsOfOneSessionInABatchRunInOrder) {
  auto cache = NewCache();
  SessionStep first = Step(cache, 0, 2);
  SessionStep second = Step(cache, 2, 1);
  SessionStep third = Step(cache, 3, 1);
  auto earlier = Request({first, second});
  ExecuteAll(std::move(earlier), Request({third}));
  EXPECT_EQ(cache->length(0), 4);
  EXPECT_FLOAT_EQ(FirstOutput(first), 1.0f);
  EXPECT_FLOAT_EQ(FirstOutput(second), 2.0f);
  EXPECT_FLOAT_EQ(FirstOutput(third), 2.5f);
  EXPECT_EQ(backend_.append_calls, std::vector<std::size_t>{1})
      << "what shares a page is one append";
}

// Each is a task of the backend, and would cost as much as a whole batch.
TEST_F(WorkerTest, RowsInPiecesThatManyStepsAppendToALayerBecomeOneAppend) {
  auto cache = NewCache();
  auto other = NewCache();
  SessionStep whole = Step(cache, 0, 1);
  SessionStep cut = Step(cache, 1, 2);
  StepAppend& rows = *cut.append;
  rows.k_pieces = {{0, Step(cache, 1, 1).append->k}, {1, Step(cache, 2, 1).append->k}};
  rows.v_pieces = rows.k_pieces;
  rows.k.data = rows.v.data = nullptr;
  SessionStep last = Step(cache, 3, 1);
  ExecuteAll(Request({whole, Step(other, 0, 1), cut}), Request({last}));
  EXPECT_EQ(backend_.append_calls, std::vector<std::size_t>{2}) << "of two caches";
  EXPECT_EQ(cache->length(0), 4);
  EXPECT_FLOAT_EQ(FirstOutput(last), 2.5f) << "the mean of 1, 2, 3 and 4";
}

TEST_F(WorkerTest, OnlyWhatWasComputedIsCounted) {
  auto cache = NewCache();
  SessionStep good = Step(cache, 0, 1);
  SessionStep gap = Step(cache, 9, 1);
  good.work = absl::Milliseconds(1);
  gap.work = absl::Milliseconds(3);
  std::vector<std::unique_ptr<AttentionRequest>> batch;
  batch.push_back(Request({good, gap}));
  batch.push_back(Request({Step(cache, 1, 1)}));
  batch.push_back(Request({Step(cache, 7, 1)}));
  EXPECT_THAT(worker_.Execute({std::move(batch), clock_.Now()}),
              ::testing::ElementsAre(0.25, 1, 0));
  backend_.run_status = absl::InternalError("broken");
  batch.clear();
  batch.push_back(Request({Step(cache, 2, 1)}));
  EXPECT_THAT(worker_.Execute({std::move(batch), clock_.Now()}), ::testing::ElementsAre(0));
}

TEST_F(WorkerTest, AppendsOfDifferentSessionsAndLayersShareOneCall) {
  auto a = NewCache(2);
  auto b = NewCache();
  ExecuteAll(Request({Step(a, 0, 1, 0), Step(a, 0, 1, 1), Step(b, 0, 1)}));
  EXPECT_EQ(backend_.append_calls, std::vector<std::size_t>{3});
}

TEST_F(WorkerTest, AReplayAttendsAgainWithoutAppending) {
  auto cache = NewCache();
  ExecuteAll(Request({Step(cache, 0, 2), Step(cache, 2, 1)}));
  SessionStep replay = Step(cache, 0, 2);
  ExecuteAll(Request({replay}));
  EXPECT_TRUE(results_[1]->steps[0].is_replay);
  EXPECT_EQ(cache->length(0), 3);
  EXPECT_FLOAT_EQ(static_cast<const float*>(replay.attend->task.o.data)[kDim], 1.5f);
}

TEST_F(WorkerTest, AGapFailsItsStepAndLeavesTheOthers) {
  auto a = NewCache();
  auto b = NewCache();
  ExecuteAll(Request({Step(a, 5, 1), Step(b, 0, 1)}));
  ASSERT_TRUE(results_[0]->status.ok());
  EXPECT_EQ(GetErrorDetail(results_[0]->steps[0].status)->reason, "POSITION_MISMATCH");
  EXPECT_TRUE(results_[0]->steps[1].status.ok());
  EXPECT_EQ(a->length(0), 0);
  EXPECT_EQ(b->length(0), 1);
}

TEST_F(WorkerTest, ExhaustedPagesFailTheStepThatNeedsThem) {
  auto a = NewCache();
  auto b = NewCache();
  auto too_large = Request({Step(a, 0, 1000)});
  ExecuteAll(std::move(too_large), Request({Step(b, 0, 1)}));
  const absl::Status status = results_[0]->steps[0].status;
  ASSERT_TRUE(GetErrorDetail(status).has_value()) << status;
  EXPECT_EQ(GetErrorDetail(status)->reason, "KV_EXHAUSTED");
  EXPECT_TRUE(results_[1]->steps[0].status.ok());
}

TEST_F(WorkerTest, AStepThatTheKernelsRefuseDoesNotAppend) {
  auto cache = NewCache();
  SessionStep step = Step(cache, 0, 2);
  step.attend->task.o.data = nullptr;
  ExecuteAll(Request({step}));
  EXPECT_THAT(std::string(results_[0]->status.message()), HasSubstr("o is missing"));
  EXPECT_EQ(cache->length(0), 0);
}

TEST_F(WorkerTest, ABackendFailureTakesAppendsBackAndTheNextBatchIsServed) {
  auto cache = NewCache();
  ExecuteAll(Request({Step(cache, 0, 2)}));
  backend_.run_status = absl::InternalError("device lost");
  auto failing = Request({Step(cache, 2, 1)});
  ExecuteAll(std::move(failing), Request({Step(NewCache(), 0, 1)}));
  EXPECT_EQ(results_[1]->status.code(), absl::StatusCode::kInternal);
  EXPECT_EQ(results_[2]->status.code(), absl::StatusCode::kInternal);
  EXPECT_EQ(cache->length(0), 2);
  backend_.run_status = absl::OkStatus();
  SessionStep again = Step(cache, 2, 1);
  ExecuteAll(Request({again}));
  EXPECT_TRUE(results_[3]->steps[0].status.ok());
  EXPECT_FALSE(results_[3]->steps[0].is_replay);
  EXPECT_FLOAT_EQ(FirstOutput(again), 2.0f);
}

TEST_F(WorkerTest, RunningOutOfMemoryFailsTheBatchOnly) {
  auto cache = NewCache();
  backend_.throws = true;
  ExecuteAll(Request({Step(cache, 0, 1)}));
  EXPECT_EQ(results_[0]->status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(cache->length(0), 0);
  backend_.throws = false;
  ExecuteAll(Request({Step(cache, 0, 1)}));
  EXPECT_TRUE(results_[1]->status.ok());
}

TEST_F(WorkerTest, ATaskThatTheKernelsDoNotSupportFailsItsRequestAlone) {
  auto bad = Request({});
  bad->tasks.emplace_back().params.head_dim_qk = 0;
  auto good = Request({Step(NewCache(), 0, 1)});
  ExecuteAll(std::move(bad), std::move(good));
  EXPECT_EQ(results_[0]->status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_TRUE(results_[1]->status.ok());
}

TEST_F(WorkerTest, AStepOverMoreKeysThanTheKernelsSupportFailsAloneAndDoesNotAppend) {
  backend_.max_kv_len = 2;
  const auto cache = NewCache();
  auto bad = Request({Step(cache, 0, 3)});
  auto good = Request({Step(NewCache(), 0, 2)});
  ExecuteAll(std::move(bad), std::move(good));
  EXPECT_EQ(results_[0]->steps[0].status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_EQ(cache->length(0), 0);
  EXPECT_TRUE(results_[1]->steps[0].status.ok());
}

TEST_F(WorkerTest, ColumnSumsCoverTheAttendedTokens) {
  SessionStep step = Step(NewCache(), 0, 4);
  step.attend->max_column_sum_bytes = 1 << 20;
  ExecuteAll(Request({step}));
  const std::vector<float>& sums = results_[0]->steps[0].column_sums;
  ASSERT_EQ(sums.size(), 4u);
  EXPECT_NEAR(sums[0], 1.0 + 1.0 / 2 + 1.0 / 3 + 1.0 / 4, 1e-6);
  EXPECT_NEAR(sums[3], 1.0 / 4, 1e-6);
}

TEST_F(WorkerTest, TimingTellsTheBatchItRodeIn) {
  auto first = Request({Step(NewCache(), 0, 1)});
  clock_.Advance(absl::Milliseconds(7));
  ExecuteAll(std::move(first), Request({Step(NewCache(), 0, 1)}));
  EXPECT_EQ(results_[0]->timing.queue, absl::Milliseconds(7));
  EXPECT_EQ(results_[1]->timing.queue, absl::ZeroDuration());
  EXPECT_EQ(results_[0]->timing.batch_size, 2);
}

// A step whose keys, values and queries are x W^T, and whose output goes through W, too. W doubles.
class ForwardTest : public WorkerTest {
 protected:
  ForwardTest() {
    std::vector<float> w(kDim * kDim, 0.0f);
    for (int i = 0; i < kDim; ++i) w[i * kDim + i] = 2.0f;
    const ProjectionPart part{kDim, DType::kFloat32, w.data(), nullptr};
    doubling_ = *backend_.projections()->Pack(kDim, {&part, 1});
  }

  // Rows full of position + 1; their keys and values are twice that.
  std::unique_ptr<AttentionRequest> Forward(const std::shared_ptr<KvCache>& cache,
                                            std::int64_t position, std::int64_t num_tokens) {
    SessionStep step = Step(cache, position, num_tokens);
    std::vector<float>& projected = buffers_.emplace_back(num_tokens * kDim, -7.0f);
    std::vector<float>& y = buffers_.emplace_back(num_tokens * kDim, -9.0f);
    ProjectionTask in{doubling_.get(), num_tokens, step.append->k.data,
                      DType::kFloat32, kDim,       projected.data(),
                      DType::kFloat32, kDim};
    ProjectionTask out{doubling_.get(), num_tokens, step.attend->task.o.data,
                       DType::kFloat32, kDim,       y.data(),
                       DType::kFloat32, kDim};
    step.append->k.data = step.append->v.data = step.attend->task.q.data = projected.data();
    auto request = Request({step});
    request->inputs.push_back({in, 0});
    request->outputs.push_back({out, 0});
    return request;
  }
  static float FirstY(const AttentionRequest& request) {
    return *static_cast<const float*>(request.outputs[0].task.y);
  }

  std::shared_ptr<const PackedProjection> doubling_;
};

TEST_F(ForwardTest, ProjectsBeforeAndAfterTheAttention) {
  auto request = Forward(NewCache(), 0, 1);
  const float* y = static_cast<const float*>(request->outputs[0].task.y);
  ExecuteAll(std::move(request));
  ASSERT_TRUE(results_[0]->steps[0].status.ok()) << results_[0]->steps[0].status;
  EXPECT_EQ(*y, 4.0f) << "1 doubled is the only value, and doubled again";
}

TEST_F(ForwardTest, RequestsOfABatchShareTheirProjections) {
  ExecuteAll(Forward(NewCache(), 0, 1), Forward(NewCache(), 0, 2), Forward(NewCache(), 0, 3));
  EXPECT_THAT(backend_.projections_.calls, ::testing::ElementsAre(3, 3)) << "before and after";
}

TEST_F(ForwardTest, AStepThatFailsIsNotProjected) {
  auto bad = Forward(NewCache(), 5, 1);
  const float* y = static_cast<const float*>(bad->outputs[0].task.y);
  ExecuteAll(Forward(NewCache(), 0, 1), std::move(bad));
  EXPECT_EQ(GetErrorDetail(results_[0]->steps[0].status)->reason, "POSITION_MISMATCH");
  EXPECT_TRUE(results_[1]->steps[0].status.ok());
  EXPECT_EQ(*y, -9.0f) << "untouched";
  EXPECT_THAT(backend_.projections_.calls, ::testing::ElementsAre(1, 1));
}

TEST_F(ForwardTest, RotaryPositionsAreWhereTheStepAppends) {
  RotaryParams params;
  params.dim = kDim;
  const Rotary rotary(params);
  auto cache = NewCache();
  ExecuteAll(Forward(cache, 0, 3));
  auto request = Forward(cache, 3, 1);
  request->inputs[0].task.rotary = &rotary;
  request->inputs[0].task.num_rotary_heads = 1;
  request->inputs[0].task.rotary_head_dim = kDim;
  const auto* q = static_cast<const float*>(request->inputs[0].task.y);
  ExecuteAll(std::move(request));
  ASSERT_TRUE(results_[1]->steps[0].status.ok());
  std::vector<float> expected(kDim, 8.0f), cos_sin(kDim);  // token 3 is full of 4, doubled
  rotary.Turn(3, cos_sin.data());
  rotary.Apply(cos_sin.data(), expected.data());
  EXPECT_EQ(std::vector<float>(q, q + kDim), expected);
}

TEST_F(ForwardTest, SlicesChangeNothing) {
  auto request = Forward(NewCache(), 0, 40);
  const float* y = static_cast<const float*>(request->outputs[0].task.y);
  auto sliced = worker_.BeginSliced(std::move(request), clock_.Now());
  const std::atomic<bool> always{true};
  double progress = 0;
  while (!sliced->RunSlice(always)) {
    EXPECT_GE(sliced->progress(), progress);
    progress = sliced->progress();
  }
  ASSERT_TRUE(results_[0]->steps[0].status.ok());
  EXPECT_EQ(y[0], 4.0f);
  EXPECT_EQ(y[39 * kDim], 2 * 2 * 20.5f) << "the mean of 1 to 40, doubled twice";
  EXPECT_THAT(backend_.projections_.calls, ::testing::ElementsAre(1, 1));
}

}  // namespace
}  // namespace attention::server
