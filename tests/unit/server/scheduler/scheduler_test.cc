#include "server/scheduler/scheduler.h"

#include <gmock/gmock.h>

#include <atomic>
#include <thread>

#include "server/base/error_reason.h"
#include "tests/support/fake_clock.h"

namespace attention::server {
namespace {

// Completes every request at once, or, when closed, only after Open.
class GatedExecutor final : public BatchExecutor {
  // Never done by itself.
  class Sliced final : public SlicedRequest {
   public:
    explicit Sliced(std::unique_ptr<AttentionRequest> request) : request_(std::move(request)) {}
    const AttentionRequest& request() const override { return *request_; }
    double progress() const override { return progress_; }
    bool RunSlice(const std::atomic<bool>& should_yield) override {
      do {
        progress_ += (1 - progress_) * 1e-8;  // standing still, it would keep its turn for ever
        std::this_thread::yield();
      } while (!should_yield.load());
      return false;
    }
    void Abandon(const absl::Status& status) override {
      AttentionResult result;
      result.status = status;
      Complete(std::move(request_), std::move(result));
    }

   private:
    std::unique_ptr<AttentionRequest> request_;
    double progress_ = 0;
  };

 public:
  std::vector<double> Execute(Batch batch) override {
    {
      MutexLock lock(&mutex_);
      batch_sizes_.push_back(batch.requests.size());
      threads_.push_back(std::this_thread::get_id());
      changed_.NotifyAll();
      changed_.Await(&mutex_, [this] { return is_open_; });
    }
    const std::vector<double> computed(batch.requests.size(), computed_share_);
    for (auto& request : batch.requests) Complete(std::move(request), {});
    return computed;
  }
  std::unique_ptr<SlicedRequest> BeginSliced(std::unique_ptr<AttentionRequest> request,
                                             absl::Time) override {
    MutexLock lock(&mutex_);
    ++num_sliced_;
    changed_.NotifyAll();
    return std::make_unique<Sliced>(std::move(request));
  }
  void AwaitSliced() {
    MutexLock lock(&mutex_);
    changed_.Await(&mutex_, [this] { return num_sliced_ > 0; });
  }
  void set_computed_share(double share) { computed_share_ = share; }
  void Close() {
    MutexLock lock(&mutex_);
    is_open_ = false;
  }
  void Open() {
    MutexLock lock(&mutex_);
    is_open_ = true;
    changed_.NotifyAll();
  }
  void AwaitBatches(std::size_t count) {
    MutexLock lock(&mutex_);
    changed_.Await(&mutex_, [this, count] { return batch_sizes_.size() >= count; });
  }
  std::thread::id last_thread() {
    MutexLock lock(&mutex_);
    return threads_.back();
  }
  std::vector<std::size_t> batch_sizes() {
    MutexLock lock(&mutex_);
    return batch_sizes_;
  }

 private:
  Mutex mutex_;
  CondVar changed_;
  bool is_open_ = true;
  std::vector<std::size_t> batch_sizes_;
  std::vector<std::thread::id> threads_;
  std::atomic<double> computed_share_{1};
  int num_sliced_ = 0;
};

class SchedulerTest : public ::testing::Test {
 protected:
  std::unique_ptr<AttentionRequest> Request() {
    auto request = std::make_unique<AttentionRequest>();
    request->tenant = std::string("a");  // GCC 12 warns of the literal
    request->arrival = clock_.Now();
    request->bytes = 100;
    request->work = absl::Milliseconds(1);
    request->completion = [this](std::unique_ptr<AttentionRequest>, AttentionResult result) {
      MutexLock lock(&mutex_);
      ++completed_[result.status.code()];
    };
    return request;
  }
  absl::Status Submit(Scheduler::Start start = Scheduler::Start::kNow) {
    auto request = Request();
    return scheduler_->Submit(request, start);
  }
  int Completed(absl::StatusCode code) {
    MutexLock lock(&mutex_);
    return completed_[code];
  }

  FakeClock clock_;
  ServerMetrics metrics_;
  GatedExecutor executor_;
  Mutex mutex_;
  std::map<absl::StatusCode, int> completed_;
  std::unique_ptr<Scheduler> scheduler_ = std::make_unique<Scheduler>(
      executor_,
      Scheduler::Limits{{5, 1000},
                        {.max_batch_requests = 8, .max_batch_work = absl::Milliseconds(20)},
                        absl::Milliseconds(2)},
      clock_, metrics_);
};

TEST_F(SchedulerTest, ALoneRequestRunsAtOnceAndAlone) {
  ASSERT_TRUE(Submit().ok());
  ASSERT_TRUE(scheduler_->AwaitIdle(absl::Now() + absl::Seconds(10)));
  EXPECT_EQ(Completed(absl::StatusCode::kOk), 1);
  EXPECT_EQ(executor_.batch_sizes(), std::vector<std::size_t>{1});
}

TEST_F(SchedulerTest, WhatArrivesWhileTheWorkerIsBusyFormsTheNextBatch) {
  executor_.Close();
  ASSERT_TRUE(Submit().ok());
  executor_.AwaitBatches(1);
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(Submit().ok());
  executor_.Open();
  ASSERT_TRUE(scheduler_->AwaitIdle(absl::Now() + absl::Seconds(10)));
  EXPECT_EQ(executor_.batch_sizes(), (std::vector<std::size_t>{1, 3}));
}

TEST_F(SchedulerTest, AFullQueueRefusesWithARetryDelayAndTheCallerKeepsTheRequest) {
  executor_.Close();
  ASSERT_TRUE(Submit().ok());
  executor_.AwaitBatches(1);
  for (int i = 0; i < 4; ++i) ASSERT_TRUE(Submit().ok());
  auto refused = Request();
  const absl::Status status = scheduler_->Submit(refused);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(GetErrorDetail(status)->reason, "QUEUE_FULL");
  EXPECT_TRUE(GetErrorDetail(status)->retry_delay.has_value());
  EXPECT_NE(refused, nullptr);
  EXPECT_EQ(metrics_.rejected_queue_full.value(), 1);
  executor_.Open();
  ASSERT_TRUE(scheduler_->AwaitIdle(absl::Now() + absl::Seconds(10)));
  EXPECT_TRUE(scheduler_->Submit(refused).ok()) << "room again";
}

TEST_F(SchedulerTest, QueuedBytesAreBounded) {
  executor_.Close();
  ASSERT_TRUE(Submit().ok());
  executor_.AwaitBatches(1);
  ASSERT_TRUE(Submit().ok());
  auto large = Request();
  large->bytes = 901;
  EXPECT_EQ(scheduler_->Submit(large).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(scheduler_->CheckRoom({"a", Priority::kNormal, 901, absl::InfiniteFuture()}).code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(scheduler_->CheckRoom({"a", Priority::kNormal, 900, absl::InfiniteFuture()}).ok());
  large->bytes = 900;
  EXPECT_TRUE(scheduler_->Submit(large).ok());
  executor_.Open();
}

TEST_F(SchedulerTest, AnExpiredRequestIsRefusedOnArrival) {
  auto late = Request();
  late->deadline = clock_.Now();
  EXPECT_EQ(scheduler_->Submit(late).code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(metrics_.dropped[static_cast<int>(DropReason::kDeadline)].value(), 1);
}

TEST_F(SchedulerTest, WorkThatExpiresInTheQueueIsNeverComputed) {
  executor_.Close();
  ASSERT_TRUE(Submit().ok());
  executor_.AwaitBatches(1);
  auto waiting = Request();
  waiting->deadline = clock_.Now() + absl::Seconds(1);
  ASSERT_TRUE(scheduler_->Submit(waiting).ok());
  clock_.Advance(absl::Seconds(2));
  executor_.Open();
  ASSERT_TRUE(scheduler_->AwaitIdle(absl::Now() + absl::Seconds(10)));
  EXPECT_EQ(Completed(absl::StatusCode::kDeadlineExceeded), 1);
  EXPECT_EQ(executor_.batch_sizes(), std::vector<std::size_t>{1});
}

TEST_F(SchedulerTest, TheDeadMakeRoomForTheLiving) {
  executor_.Close();
  ASSERT_TRUE(Submit().ok());
  executor_.AwaitBatches(1);
  for (int i = 0; i < 4; ++i) {
    auto waiting = Request();
    waiting->deadline = clock_.Now() + absl::Seconds(1);
    ASSERT_TRUE(scheduler_->Submit(waiting).ok());
  }
  EXPECT_EQ(Submit().code(), absl::StatusCode::kResourceExhausted);
  clock_.Advance(absl::Seconds(1));
  EXPECT_TRUE(Submit().ok());
  EXPECT_EQ(Completed(absl::StatusCode::kDeadlineExceeded), 4);
  EXPECT_EQ(scheduler_->load().requests, 1);
  executor_.Open();
}

TEST_F(SchedulerTest, WorkThatFailsSaysNothingOfTheDevicesSpeed) {
  executor_.set_computed_share(0);
  ASSERT_TRUE(Submit().ok());
  ASSERT_TRUE(scheduler_->AwaitIdle(absl::Now() + absl::Seconds(10)));
  executor_.set_computed_share(1);
  executor_.Close();
  ASSERT_TRUE(Submit().ok());
  executor_.AwaitBatches(2);
  for (int i = 0; i < 4; ++i) ASSERT_TRUE(Submit().ok());
  EXPECT_EQ(GetErrorDetail(Submit())->retry_delay, absl::Milliseconds(100)) << "no rate is known";
  executor_.Open();
}

TEST_F(SchedulerTest, DrainingRefusesNewWorkAndFinishesTheOld) {
  executor_.Close();
  ASSERT_TRUE(Submit().ok());
  executor_.AwaitBatches(1);
  ASSERT_TRUE(Submit().ok());
  scheduler_->BeginDrain();
  const absl::Status refused = Submit();
  EXPECT_EQ(refused.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(GetErrorDetail(refused)->reason, "DRAINING");
  EXPECT_FALSE(scheduler_->AwaitIdle(absl::Now() + absl::Milliseconds(1)));
  executor_.Open();
  ASSERT_TRUE(scheduler_->AwaitIdle(absl::Now() + absl::Seconds(10)));
  EXPECT_EQ(Completed(absl::StatusCode::kOk), 2);
}

TEST_F(SchedulerTest, AContinuationIsTakenWhileDrainingAndWhenFull) {
  executor_.Close();
  ASSERT_TRUE(Submit().ok());
  executor_.AwaitBatches(1);
  for (int i = 0; i < 4; ++i) ASSERT_TRUE(Submit().ok());
  scheduler_->BeginDrain();
  EXPECT_EQ(scheduler_->CheckAccepting().code(), absl::StatusCode::kUnavailable);
  auto continuation = Request();
  continuation->is_continuation = true;
  EXPECT_TRUE(scheduler_->Submit(continuation).ok());
  executor_.Open();
  ASSERT_TRUE(scheduler_->AwaitIdle(absl::Now() + absl::Seconds(10)));
  EXPECT_EQ(Completed(absl::StatusCode::kOk), 6);
}

TEST_F(SchedulerTest, DestructionCompletesWhatIsQueued) {
  executor_.Close();
  ASSERT_TRUE(Submit().ok());
  executor_.AwaitBatches(1);
  ASSERT_TRUE(Submit().ok());
  std::thread opener([this] { executor_.Open(); });
  scheduler_.reset();
  opener.join();
  EXPECT_EQ(Completed(absl::StatusCode::kOk) + Completed(absl::StatusCode::kUnavailable), 2);
}

TEST_F(SchedulerTest, StoppingAnswersWhatIsQueuedAndRefusesWhatFollows) {
  auto endless = Request();
  endless->work = absl::Seconds(100);
  ASSERT_TRUE(scheduler_->Submit(endless).ok());
  executor_.AwaitSliced();
  executor_.Close();
  ASSERT_TRUE(Submit().ok());
  executor_.AwaitBatches(1);
  ASSERT_TRUE(Submit().ok());
  scheduler_->BeginDrain();
  std::thread opener([this] { executor_.Open(); });
  scheduler_->Stop();
  opener.join();
  EXPECT_EQ(Completed(absl::StatusCode::kOk) + Completed(absl::StatusCode::kUnavailable), 3);
  EXPECT_GE(Completed(absl::StatusCode::kUnavailable), 1) << "the endless one";
  auto continuation = Request();
  continuation->is_continuation = true;
  const absl::Status refused = scheduler_->Submit(continuation, Scheduler::Start::kWithPending);
  EXPECT_EQ(refused.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(GetErrorDetail(refused)->reason, "DRAINING");
  scheduler_->ComputePending();
  EXPECT_TRUE(scheduler_->AwaitIdle(absl::Now()));
  scheduler_->Stop();  // once more does nothing
}

TEST_F(SchedulerTest, StoppingWaitsForWhatAnotherThreadComputes) {
  executor_.Close();
  ASSERT_TRUE(Submit(Scheduler::Start::kWithPending).ok());
  std::thread inline_runner([this] { scheduler_->ComputePending(); });
  executor_.AwaitBatches(1);
  std::thread opener([this] { executor_.Open(); });
  scheduler_->Stop();
  EXPECT_EQ(Completed(absl::StatusCode::kOk), 1);
  inline_runner.join();
  opener.join();
}

TEST_F(SchedulerTest, ManyThreadsSubmitAndEveryCompletionRunsOnce) {
  std::atomic<int> accepted{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([this, &accepted] {
      for (int i = 0; i < 250; ++i) accepted += Submit().ok() ? 1 : 0;
    });
  }
  for (std::thread& thread : threads) thread.join();
  ASSERT_TRUE(scheduler_->AwaitIdle(absl::Now() + absl::Seconds(10)));
  EXPECT_EQ(Completed(absl::StatusCode::kOk), accepted.load());
}

// --- On the caller's thread ---

TEST_F(SchedulerTest, PendingWorkRunsOnTheThreadThatAsksForItAsOneBatch) {
  ASSERT_TRUE(Submit(Scheduler::Start::kWithPending).ok());
  ASSERT_TRUE(Submit(Scheduler::Start::kWithPending).ok());
  EXPECT_EQ(Completed(absl::StatusCode::kOk), 0);
  scheduler_->ComputePending();
  EXPECT_EQ(Completed(absl::StatusCode::kOk), 2);
  EXPECT_EQ(executor_.batch_sizes(), std::vector<std::size_t>{2});
  EXPECT_EQ(executor_.last_thread(), std::this_thread::get_id());
}

TEST_F(SchedulerTest, MoreThanLittleWorkIsLeftToTheWorker) {
  ASSERT_TRUE(Submit(Scheduler::Start::kWithPending).ok());
  ASSERT_TRUE(Submit(Scheduler::Start::kWithPending).ok());
  ASSERT_TRUE(Submit(Scheduler::Start::kWithPending).ok()) << "3 ms, above the 2 ms";
  ASSERT_TRUE(scheduler_->AwaitIdle(absl::Now() + absl::Seconds(10)));
  EXPECT_EQ(Completed(absl::StatusCode::kOk), 3);
  EXPECT_NE(executor_.last_thread(), std::this_thread::get_id());
}

TEST_F(SchedulerTest, NothingIsPendingBesideABusyWorker) {
  executor_.Close();
  ASSERT_TRUE(Submit().ok());
  executor_.AwaitBatches(1);
  ASSERT_TRUE(Submit(Scheduler::Start::kWithPending).ok());
  scheduler_->ComputePending();
  EXPECT_EQ(Completed(absl::StatusCode::kOk), 0);
  executor_.Open();
  ASSERT_TRUE(scheduler_->AwaitIdle(absl::Now() + absl::Seconds(10)));
  EXPECT_EQ(Completed(absl::StatusCode::kOk), 2);
}

TEST_F(SchedulerTest, WhatArrivesDuringAnInlineRunIsTheWorkers) {
  auto first = Request();
  first->completion = [this](std::unique_ptr<AttentionRequest>, AttentionResult) {
    ASSERT_TRUE(Submit().ok());
  };
  ASSERT_TRUE(scheduler_->Submit(first, Scheduler::Start::kWithPending).ok());
  scheduler_->ComputePending();
  ASSERT_TRUE(scheduler_->AwaitIdle(absl::Now() + absl::Seconds(10)));
  EXPECT_EQ(Completed(absl::StatusCode::kOk), 1);
  EXPECT_EQ(executor_.batch_sizes(), (std::vector<std::size_t>{1, 1}));
}

// --- A device that fails ---

// Fails its first batch; sets its device up again when it is told to.
class FailingExecutor final : public BatchExecutor {
 public:
  std::vector<double> Execute(Batch batch) override {
    needs_recovery_ = !has_recovered_;
    for (auto& request : batch.requests) {
      if (needs_recovery_) {
        failed_.push_back(std::move(request));
      } else {
        Complete(std::move(request), {});
      }
    }
    return {};
  }
  bool needs_recovery() const override { return needs_recovery_; }
  void Recover() override {
    {
      MutexLock lock(&mutex_);
      thread_ = std::this_thread::get_id();
      changed_.NotifyAll();
      changed_.Await(&mutex_, [this] { return may_recover_; });
    }
    needs_recovery_ = false;
    has_recovered_ = true;
    AttentionResult result;
    result.status = absl::InternalError("broken");
    for (auto& request : failed_) Complete(std::move(request), result);
    failed_.clear();
  }
  std::unique_ptr<SlicedRequest> BeginSliced(std::unique_ptr<AttentionRequest>,
                                             absl::Time) override {
    return nullptr;
  }

  // Returns the thread that does it.
  std::thread::id AwaitRecovery() {
    MutexLock lock(&mutex_);
    changed_.Await(&mutex_, [this] { return thread_ != std::thread::id(); });
    return thread_;
  }
  void LetRecover() {
    MutexLock lock(&mutex_);
    may_recover_ = true;
    changed_.NotifyAll();
  }

 private:
  Mutex mutex_;
  CondVar changed_;
  std::thread::id thread_;
  bool may_recover_ = false;
  bool needs_recovery_ = false;
  bool has_recovered_ = false;
  std::vector<std::unique_ptr<AttentionRequest>> failed_;
};

class FailedDeviceTest : public SchedulerTest {
 protected:
  FailedDeviceTest() {
    scheduler_ = std::make_unique<Scheduler>(
        failing_,
        Scheduler::Limits{{5, 1000},
                          {.max_batch_requests = 8, .max_batch_work = absl::Milliseconds(20)},
                          absl::Milliseconds(2)},
        clock_, metrics_);
  }
  ~FailedDeviceTest() override { scheduler_.reset(); }

  FailingExecutor failing_;
};

TEST_F(FailedDeviceTest, IsSetUpAgainOnTheSchedulersThreadAndThenAnswers) {
  ASSERT_TRUE(Submit(Scheduler::Start::kWithPending).ok());
  scheduler_->ComputePending();  // returns: it may be a thread that serves others
  EXPECT_NE(failing_.AwaitRecovery(), std::this_thread::get_id());
  EXPECT_EQ(Completed(absl::StatusCode::kInternal), 0);
  ASSERT_TRUE(Submit(Scheduler::Start::kWithPending).ok());
  scheduler_->ComputePending();
  EXPECT_FALSE(scheduler_->AwaitIdle(absl::Now())) << "what follows waits for the device";
  failing_.LetRecover();
  ASSERT_TRUE(scheduler_->AwaitIdle(absl::Now() + absl::Seconds(10)));
  EXPECT_EQ(Completed(absl::StatusCode::kInternal), 1);
  EXPECT_EQ(Completed(absl::StatusCode::kOk), 1);
}

TEST_F(FailedDeviceTest, StoppingAnswersWhatFailedWithIt) {
  ASSERT_TRUE(Submit(Scheduler::Start::kWithPending).ok());
  scheduler_->ComputePending();
  failing_.LetRecover();
  scheduler_->Stop();
  EXPECT_EQ(Completed(absl::StatusCode::kInternal), 1);
}

// --- Long requests ---

TEST_F(SchedulerTest, ShortWorkInterruptsALongRequest) {
  auto endless = Request();
  endless->work = absl::Seconds(100);
  ASSERT_TRUE(scheduler_->Submit(endless).ok());
  executor_.AwaitSliced();
  for (std::size_t i = 1; i <= 20; ++i) {
    ASSERT_TRUE(Submit().ok());
    executor_.AwaitBatches(i);
  }
  EXPECT_FALSE(scheduler_->AwaitIdle(absl::Now()));
  scheduler_.reset();
  EXPECT_EQ(Completed(absl::StatusCode::kUnavailable), 1) << "the long one, unfinished";
  EXPECT_EQ(Completed(absl::StatusCode::kOk), 20);
}

TEST_F(SchedulerTest, AnInterruptedRequestThatExpiresIsCompletedWithThat) {
  auto endless = Request();
  endless->work = absl::Seconds(100);
  endless->deadline = clock_.Now() + absl::Seconds(1);
  ASSERT_TRUE(scheduler_->Submit(endless).ok());
  executor_.AwaitSliced();
  clock_.Advance(absl::Seconds(2));
  ASSERT_TRUE(Submit().ok());
  ASSERT_TRUE(scheduler_->AwaitIdle(absl::Now() + absl::Seconds(10)));
  EXPECT_EQ(Completed(absl::StatusCode::kDeadlineExceeded), 1);
  EXPECT_EQ(Completed(absl::StatusCode::kOk), 1);
  EXPECT_EQ(metrics_.dropped[static_cast<int>(DropReason::kDeadline)].value(), 1);
}

}  // namespace
}  // namespace attention::server
