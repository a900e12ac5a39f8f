// Requests when memory is out: each allocation on their way fails in turn.
#include <gmock/gmock.h>

#include <atomic>
#include <optional>

#include "kernels/reference/reference_backend.h"
#include "server/base/background_thread.h"
#include "server/cache/kv_cache_factory.h"
#include "server/engine/worker.h"
#include "tests/support/failing_new.h"
#include "tests/support/fake_clock.h"
#include "tests/unit/server/engine/one_head_step.h"

namespace attention::server {
namespace {

using ::attention::testing::FailingAllocation;
using ::attention::testing::OneHeadStep;

constexpr int kDim = 4;

class AllocationFailureTest : public ::testing::Test {
 protected:
  std::shared_ptr<KvCache> NewCache() {
    return *factory_.Create({1, kDim, kDim, DType::kFloat32}, 1, 0);
  }
  std::unique_ptr<AttentionRequest> Request(const std::shared_ptr<KvCache>& cache) {
    auto request = std::make_unique<AttentionRequest>();
    request->tenant = std::string("a");  // GCC 12 warns of the literal
    request->arrival = clock_.Now();
    request->bytes = 100;
    request->work = absl::Microseconds(1);
    request->steps.push_back(OneHeadStep(cache, 0, 1, 1, kDim, row_, output_));
    request->completion = [this](std::unique_ptr<AttentionRequest>, AttentionResult result) {
      ++num_answers_;
      code_ = result.status.ok() ? result.steps[0].status.code() : result.status.code();
    };
    return request;
  }

  FakeClock clock_;
  ServerMetrics metrics_;
  std::unique_ptr<AttentionBackend> backend_ = reference::MakeReferenceBackend();
  PagePool pages_{backend_->memory(), std::size_t{8} << 20};
  KvCacheFactory factory_{{{*backend_, pages_}}, 16};
  Worker worker_{*backend_, clock_, metrics_};
  std::atomic<int> num_answers_{0};
  absl::StatusCode code_ = absl::StatusCode::kOk;
  const float row_[kDim] = {1, 2, 3, 4};
  float output_[kDim] = {};
};

TEST_F(AllocationFailureTest, ABatchThatMemoryIsOutForIsAnsweredAndTheNextIsComputed) {
  int num_failures = 0;
  for (int n = 1;; ++n) {
    SCOPED_TRACE(n);
    const auto cache = NewCache();
    std::vector<std::unique_ptr<AttentionRequest>> requests;
    requests.push_back(Request(cache));
    num_answers_ = 0;
    bool has_failed = false;
    {
      FailingAllocation failing(n);
      worker_.Execute({std::move(requests), clock_.Now()});
      has_failed = failing.has_failed();
    }
    ASSERT_EQ(num_answers_, 1);
    if (!has_failed) break;
    ++num_failures;
    if (code_ != absl::StatusCode::kOk) {
      EXPECT_EQ(code_, absl::StatusCode::kResourceExhausted);
      EXPECT_EQ(cache->length(0), 0) << "what failed is taken back";
    }
  }
  EXPECT_GT(num_failures, 5);
  EXPECT_EQ(code_, absl::StatusCode::kOk);
}

TEST_F(AllocationFailureTest, PagesAreFreedWithoutMemory) {
  for (int n = 1; n < 4; ++n) {
    std::vector<std::shared_ptr<KvCache>> caches;
    for (int i = 0; i < 3; ++i) {
      caches.push_back(NewCache());
      num_answers_ = 0;
      std::vector<std::unique_ptr<AttentionRequest>> requests;
      requests.push_back(Request(caches.back()));
      worker_.Execute({std::move(requests), clock_.Now()});
      ASSERT_EQ(code_, absl::StatusCode::kOk);
    }
    FailingAllocation failing(n);
    caches.clear();
    EXPECT_EQ(pages_.used_bytes(), 0u);
  }
}

TEST_F(AllocationFailureTest, ACompletionThatThrowsCostsOthersNothing) {
  std::vector<std::unique_ptr<AttentionRequest>> requests;
  for (int i = 0; i < 2; ++i) requests.push_back(Request(NewCache()));
  requests[0]->completion = [](std::unique_ptr<AttentionRequest>, AttentionResult) {
    throw std::bad_alloc();
  };
  worker_.Execute({std::move(requests), clock_.Now()});
  EXPECT_EQ(num_answers_, 1);
}

TEST(BackgroundThreadTest, WorkThatThrowsLeavesTheThreadToWhatFollows) {
  BackgroundThread thread;
  std::atomic<int> num_run{0};
  thread.Post([] { throw std::bad_alloc(); });
  thread.Post([] { throw 42; });
  thread.Post([&] { ++num_run; });
  thread.AwaitIdle();
  EXPECT_EQ(num_run, 1);
}

}  // namespace
}  // namespace attention::server
