#include "server/scheduler/scheduler_pool.h"

#include <gmock/gmock.h>

#include <map>
#include <optional>
#include <string>

#include "absl/strings/str_cat.h"
#include "server/base/error_reason.h"
#include "tests/support/fake_clock.h"

namespace attention::server {
namespace {

using ::testing::ElementsAre;

// Answers each step with its layer as the position; holds its batches while it is closed.
class EchoExecutor final : public BatchExecutor {
 public:
  std::vector<double> Execute(Batch batch) override {
    {
      MutexLock lock(&mutex_);
      ++num_batches_;
      for (const auto& request : batch.requests) {
        for (const auto* list : {&request->inputs, &request->outputs}) {
          for (const RequestProjection& projection : *list) {
            projections_.push_back(
                absl::StrCat(projection.task.num_rows, " for ", projection.step.value()));
          }
        }
      }
      changed_.NotifyAll();
      changed_.Await(&mutex_, [this] { return is_open_; });
    }
    for (auto& request : batch.requests) {
      AttentionResult result;
      result.status = status;
      if (status.ok()) {
        result.timing.compute = compute;
        for (const SessionStep& step : request->steps) {
          result.steps.emplace_back().position = step.layer;
        }
      }
      Complete(std::move(request), std::move(result));
    }
    return std::vector<double>(batch.requests.size(), 1);
  }
  std::unique_ptr<SlicedRequest> BeginSliced(std::unique_ptr<AttentionRequest>,
                                             absl::Time) override {
    ADD_FAILURE() << "nothing here is long";
    return nullptr;
  }
  void SetOpen(bool is_open) {
    MutexLock lock(&mutex_);
    is_open_ = is_open;
    changed_.NotifyAll();
  }
  void AwaitBatch() {
    MutexLock lock(&mutex_);
    changed_.Await(&mutex_, [this] { return num_batches_ > 0; });
  }
  // Rows and step of each projection that came.
  std::vector<std::string> projections() {
    MutexLock lock(&mutex_);
    return projections_;
  }
  int num_batches() {
    MutexLock lock(&mutex_);
    return num_batches_;
  }

  absl::Status status;
  absl::Duration compute = absl::Milliseconds(1);

 private:
  Mutex mutex_;
  CondVar changed_;
  bool is_open_ = true;
  int num_batches_ = 0;
  std::vector<std::string> projections_;
};

class SchedulerPoolTest : public ::testing::Test {
 protected:
  static constexpr int kMaxQueued = 2;

  SchedulerPoolTest() {
    std::vector<std::unique_ptr<Scheduler>> schedulers;
    const Scheduler::Limits limits{{kMaxQueued, 1 << 20}, {}, absl::Milliseconds(2)};
    for (EchoExecutor& executor : executors_) {
      schedulers.push_back(std::make_unique<Scheduler>(executor, limits, clock_, metrics_));
    }
    pool_.emplace(std::move(schedulers));
  }
  ~SchedulerPoolTest() override {
    for (EchoExecutor& executor : executors_) executor.SetOpen(true);
  }

  // A request with a step for each device; the steps' layers count up from 0.
  std::unique_ptr<AttentionRequest> Request(const std::vector<int>& devices) {
    auto request = std::make_unique<AttentionRequest>();
    request->tenant = "a";
    request->arrival = clock_.Now();
    request->work = absl::Milliseconds(1);
    for (const int device : devices) {
      SessionStep& step = request->steps.emplace_back();
      step.device = device;
      step.layer = static_cast<int>(request->steps.size()) - 1;
    }
    request->completion = [this](std::unique_ptr<AttentionRequest> whole, AttentionResult result) {
      MutexLock lock(&mutex_);
      EXPECT_NE(whole, nullptr);
      EXPECT_FALSE(result_.has_value()) << "completed twice";
      result_ = std::move(result);
      completed_.NotifyAll();
    };
    return request;
  }
  AttentionResult Result() {
    MutexLock lock(&mutex_);
    completed_.Await(&mutex_, [this] { return result_.has_value(); });
    return *std::exchange(result_, std::nullopt);
  }
  // Keeps a device busy with one request, and its queue full behind it.
  void Fill(int device) {
    executors_[device].SetOpen(false);
    for (int i = 0; i <= kMaxQueued; ++i) {
      auto request = Request({device});
      request->tenant = std::string(1, static_cast<char>('b' + i));
      request->completion = [](std::unique_ptr<AttentionRequest>, const AttentionResult&) {};
      ASSERT_TRUE(pool_->Submit(request).ok());
      executors_[device].AwaitBatch();
    }
  }
  static std::vector<std::int64_t> Positions(const AttentionResult& result) {
    std::vector<std::int64_t> positions;
    for (const StepOutcome& step : result.steps) {
      positions.push_back(step.status.ok() ? step.position : -1);
    }
    return positions;
  }

  FakeClock clock_;
  ServerMetrics metrics_;
  EchoExecutor executors_[2];
  Mutex mutex_;
  CondVar completed_;
  std::optional<AttentionResult> result_;
  std::optional<SchedulerPool> pool_;
};

TEST_F(SchedulerPoolTest, AStepRunsOnTheDeviceOfItsSession) {
  auto request = Request({1, 1});
  ASSERT_TRUE(pool_->Submit(request).ok());
  EXPECT_THAT(Positions(Result()), ElementsAre(0, 1));
  EXPECT_EQ(executors_[0].num_batches(), 0);
  EXPECT_EQ(executors_[1].num_batches(), 1);
}

TEST_F(SchedulerPoolTest, StepsOfSeveralDevicesComeTogetherInTheirOrder) {
  executors_[0].compute = absl::Milliseconds(7);
  auto request = Request({0, 1, 1, 0});
  ASSERT_TRUE(pool_->Submit(request).ok());
  const AttentionResult result = Result();
  EXPECT_TRUE(result.status.ok());
  EXPECT_THAT(Positions(result), ElementsAre(0, 1, 2, 3));
  EXPECT_EQ(result.timing.compute, absl::Milliseconds(7)) << "the slowest part's";
}

TEST_F(SchedulerPoolTest, ProjectionsGoWithTheirStep) {
  auto request = Request({0, 1, 1});
  for (const int step : {2, 0, 1}) {
    ProjectionTask task;
    task.num_rows = 10 + step;
    request->inputs.push_back({task, step});
    task.num_rows = 20 + step;
    request->outputs.push_back({task, step});
  }
  ASSERT_TRUE(pool_->Submit(request).ok());
  EXPECT_THAT(Positions(Result()), ElementsAre(0, 1, 2));
  EXPECT_THAT(executors_[0].projections(), ElementsAre("10 for 0", "20 for 0"));
  EXPECT_THAT(executors_[1].projections(),
              ElementsAre("12 for 1", "11 for 0", "22 for 1", "21 for 0"));
}

TEST_F(SchedulerPoolTest, APartThatFailsLeavesTheOthersStepsAlone) {
  executors_[1].status = absl::InternalError("device 1 is broken");
  auto request = Request({0, 1});
  ASSERT_TRUE(pool_->Submit(request).ok());
  const AttentionResult result = Result();
  EXPECT_TRUE(result.status.ok());
  EXPECT_TRUE(result.steps[0].status.ok());
  EXPECT_EQ(result.steps[1].status.code(), absl::StatusCode::kInternal);
}

TEST_F(SchedulerPoolTest, APartThatIsRefusedFailsItsStepsOnly) {
  Fill(1);
  auto request = Request({0, 1, 0});
  ASSERT_TRUE(pool_->Submit(request).ok());
  const AttentionResult result = Result();
  EXPECT_THAT(Positions(result), ElementsAre(0, -1, 2));
  EXPECT_EQ(GetErrorDetail(result.steps[1].status)->reason, "QUEUE_FULL");
}

TEST_F(SchedulerPoolTest, ARequestThatAllRefuseStaysWithItsCaller) {
  Fill(0);
  Fill(1);
  auto request = Request({0, 1});
  EXPECT_EQ(pool_->Submit(request).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(request, nullptr);
}

TEST_F(SchedulerPoolTest, WorkWithoutASessionGoesWhereLessIsWaiting) {
  Fill(0);
  auto request = Request({});
  ASSERT_TRUE(pool_->Submit(request).ok());
  EXPECT_TRUE(Result().status.ok());
  EXPECT_EQ(executors_[1].num_batches(), 1);
}

TEST_F(SchedulerPoolTest, ABusyDeviceIsPassedOverAlthoughNothingWaitsForIt) {
  executors_[0].SetOpen(false);
  auto running = Request({0});
  running->completion = [](std::unique_ptr<AttentionRequest>, const AttentionResult&) {};
  ASSERT_TRUE(pool_->Submit(running).ok());
  executors_[0].AwaitBatch();
  auto request = Request({});
  ASSERT_TRUE(pool_->Submit(request).ok());
  EXPECT_TRUE(Result().status.ok());
  EXPECT_EQ(executors_[1].num_batches(), 1);
}

TEST_F(SchedulerPoolTest, ThereIsRoomWhileOneDeviceHasIt) {
  const std::string tenant = "a";
  const Scheduler::Arrival arrival{tenant, Priority::kNormal, 1, absl::InfiniteFuture()};
  Fill(0);
  EXPECT_TRUE(pool_->CheckRoom(arrival, clock_.Now()).ok());
  Fill(1);
  EXPECT_EQ(pool_->CheckRoom(arrival, clock_.Now()).code(), absl::StatusCode::kResourceExhausted);
}

TEST_F(SchedulerPoolTest, ADrainRefusesEverywhereAndIsIdleWhenAllAre) {
  pool_->BeginDrain();
  for (const std::vector<int>& devices : {std::vector<int>{0}, {1}, {}, {0, 1}}) {
    auto request = Request(devices);
    EXPECT_EQ(pool_->Submit(request).code(), absl::StatusCode::kUnavailable);
  }
  EXPECT_TRUE(pool_->AwaitIdle(absl::InfiniteFuture()));
}

}  // namespace
}  // namespace attention::server
