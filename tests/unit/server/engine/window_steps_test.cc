// Steps of layers with windows: they answer as a layer that keeps everything does, whatever is in
// the pages that have been let go, and a batch that fails lets nothing go.
#include <gmock/gmock.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/reference/reference_backend.h"
#include "server/base/error_reason.h"
#include "server/cache/kv_cache_factory.h"
#include "server/domain/row_checksums.h"
#include "server/engine/sliced_attention.h"
#include "server/engine/worker.h"
#include "tests/support/fake_clock.h"
#include "tests/support/faulty_backend.h"

namespace attention::server {
namespace {

using Cache = std::shared_ptr<KvCache>;

constexpr int kQueryHeads = 4, kHeads = 2, kDim = 24;
constexpr std::int64_t kPageSize = 16, kMaxTokens = 700;
constexpr std::size_t kChunk = std::size_t{1} << 16;

struct Answer {
  absl::Status status;
  std::vector<float> o, lse, column_sums;

  bool SameBits(const Answer& other) const {
    const auto same = [](const std::vector<float>& a, const std::vector<float>& b) {
      return a.size() == b.size() && std::memcmp(a.data(), b.data(), 4 * a.size()) == 0;
    };
    return same(o, other.o) && same(lse, other.lse) && same(column_sums, other.column_sums);
  }
};

class WindowStepsTest : public ::testing::Test {
 protected:
  WindowStepsTest() {
    std::uint32_t state = 7;
    for (auto* values : {&q_, &k_, &v_}) {
      const int heads = values == &q_ ? kQueryHeads : kHeads;
      for (std::int64_t i = 0; i < kMaxTokens * heads * kDim; ++i) {
        state = state * 1664525u + 1013904223u;
        values->push_back(static_cast<float>(state >> 8) / (1 << 23) - 1);
      }
    }
  }

  // Rows [begin, end), appended and attended with, within the window of `shape`.
  SessionStep Step(const Cache& cache, const LayerShape& shape, std::int64_t begin,
                   std::int64_t end) {
    SessionStep step;
    step.cache = cache;
    step.expected_position = begin;
    const auto rows = [&](const std::vector<float>& values, int heads) {
      return DenseRows(static_cast<const void*>(values.data() + begin * heads * kDim),
                       DType::kFloat32, heads, kDim);
    };
    step.append = StepAppend{end - begin, rows(k_, kHeads), rows(v_, kHeads), {}, {}, {}};
    step.append->checksums = ChecksumRows(*step.append, shape.geometry);
    StepAttend& attend = step.attend.emplace();
    attend.task.params = {kQueryHeads, kHeads, kDim, kDim};
    attend.task.params.kv_dtype = shape.geometry.dtype;
    attend.task.params.softmax_scale = 1;
    attend.task.params.is_causal = true;
    attend.task.params.window_left = shape.window_tokens - 1;
    attend.task.params.sink_tokens = shape.sink_tokens;
    attend.task.q_len = end - begin;
    attend.task.q = rows(q_, kQueryHeads);
    attend.max_column_sum_bytes = 1 << 20;
    return step;
  }
  std::unique_ptr<AttentionRequest> Request(SessionStep step, Answer& answer) {
    AttentionTask& task = step.attend->task;
    answer.o.assign(static_cast<std::size_t>(task.q_len * kQueryHeads * kDim), -1);
    answer.lse.assign(static_cast<std::size_t>(task.q_len * kQueryHeads), -1);
    task.o = DenseRows(static_cast<void*>(answer.o.data()), DType::kFloat32, kQueryHeads, kDim);
    task.lse = answer.lse.data();
    auto request = std::make_unique<AttentionRequest>();
    request->arrival = clock_.Now();
    request->steps.push_back(std::move(step));
    request->completion = [&answer](std::unique_ptr<AttentionRequest>, AttentionResult result) {
      answer.status = result.status;
      if (!result.status.ok()) return;
      answer.status = result.steps[0].status;
      answer.column_sums = std::move(result.steps[0].column_sums);
    };
    return request;
  }
  Answer Run(AttentionBackend& backend, SessionStep step) {
    Answer answer;
    std::vector<std::unique_ptr<AttentionRequest>> requests;
    requests.push_back(Request(std::move(step), answer));
    Worker(backend, clock_, metrics_).Execute({std::move(requests), clock_.Now()});
    return answer;
  }
  // A slice at a time.
  Answer RunSliced(AttentionBackend& backend, SessionStep step) {
    Answer answer;
    SlicedAttention sliced(backend, clock_, metrics_, Request(std::move(step), answer),
                           clock_.Now());
    const std::atomic<bool> yield = true;
    while (!sliced.RunSlice(yield)) {
    }
    return answer;
  }

  // Fills every page that nobody has with NaN.
  static void Poison(PagePool& pool, std::size_t page_bytes) {
    std::vector<void*> pages;
    while (void* page = pool.Allocate(page_bytes)) {
      std::memset(page, 0xFF, page_bytes);
      pages.push_back(page);
    }
    for (void* page : pages) pool.Free(page, pool.generation());
  }

  FakeClock clock_;
  ServerMetrics metrics_;
  std::vector<float> q_, k_, v_;
};

struct BackendCase {
  std::string name;
  std::function<std::unique_ptr<AttentionBackend>()> make;
};
class WindowBackendsTest : public WindowStepsTest,
                           public ::testing::WithParamInterface<BackendCase> {
 protected:
  // Steps of so many tokens, until the layer is long.
  void CompareWithAll(const LayerShape& shape, std::int64_t step, std::int64_t length) {
    const auto backend = GetParam().make();
    PagePool pool(backend->memory(), 12 * kChunk, kChunk);
    PagePool of_all(backend->memory(), 12 * kChunk, kChunk);
    const KvCacheFactory factory({{*backend, pool}}, kPageSize), all({{*backend, of_all}}, 64);
    const Cache cache = *factory.Create(CacheShape({shape}), 0);
    const Cache everything = *all.Create(shape.geometry, 1, 0);
    bool is_sliced = false;
    for (std::int64_t begin = 0; begin < length; begin += step, is_sliced = !is_sliced) {
      const std::int64_t end = std::min(begin + step, length);
      const Answer expected = Run(*backend, Step(everything, shape, begin, end));
      const SessionStep made = Step(cache, shape, begin, end);
      const Answer answer = is_sliced ? RunSliced(*backend, made) : Run(*backend, made);
      ASSERT_TRUE(answer.status.ok()) << answer.status;
      ASSERT_TRUE(answer.SameBits(expected)) << begin;
      Poison(pool, cache->layout()->page_bytes(0));
      const Answer again = Run(*backend, made);
      ASSERT_TRUE(again.status.ok()) << again.status;
      ASSERT_TRUE(again.SameBits(expected)) << "repeated at " << begin;
    }
    EXPECT_GT(cache->first_position(0), 0);
    EXPECT_LT(pool.used_bytes(), of_all.used_bytes());
  }
};

TEST_P(WindowBackendsTest, TokenByTokenALayerAnswersAsOneThatKeepsAll) {
  CompareWithAll({{kHeads, kDim, kDim, DType::kFloat32}, 20, 0}, 1, 90);
  CompareWithAll({{kHeads, kDim, kDim, DType::kInt8}, 16, 3}, 1, 90);
}

TEST_P(WindowBackendsTest, InPromptsALayerAnswersAsOneThatKeepsAll) {
  CompareWithAll({{kHeads, kDim, kDim, DType::kBFloat16}, 33, 17}, 40, 400);
  CompareWithAll({{kHeads, kDim, kDim, DType::kFloat32}, 100, 1}, 7, 300);
  CompareWithAll({{kHeads, kDim, kDim, DType::kFloat8E4M3}, 1, 0}, 50, 300);
}

TEST_P(WindowBackendsTest, DraftsOfATreeSeeTheirBranchesWithinTheWindow) {
  const auto backend = GetParam().make();
  PagePool pool(backend->memory(), 12 * kChunk, kChunk);
  const KvCacheFactory factory({{*backend, pool}}, kPageSize);
  const LayerShape shape{{kHeads, kDim, kDim, DType::kFloat32}, 20, 2};
  const Cache cache = *factory.Create(CacheShape({shape}), 0);
  const Cache everything = *factory.Create(shape.geometry, 1, 0);
  // Two branches of three drafts, behind a common first one.
  DraftTree tree{1, {1, 3, 7, 15, 17, 49, 113}, {0, 1, 2, 3, 1, 2, 3}};
  const auto with_tree = [&](SessionStep step) {
    step.attend->task.params.is_tree = true;
    step.attend->task.tree = tree.view();
    return step;
  };
  for (const Cache& each : {cache, everything}) {
    for (std::int64_t begin = 0; begin < 90; begin += 30) {
      ASSERT_TRUE(Run(*backend, Step(each, shape, begin, begin + 30)).status.ok());
    }
  }
  const Answer expected = Run(*backend, with_tree(Step(everything, shape, 90, 97)));
  for (const bool is_repeated : {false, true}) {
    const Answer answer = Run(*backend, with_tree(Step(cache, shape, 90, 97)));
    ASSERT_TRUE(answer.status.ok()) << answer.status;
    EXPECT_TRUE(answer.SameBits(expected)) << is_repeated;
    Poison(pool, cache->layout()->page_bytes(0));
  }
  EXPECT_EQ(cache->first_position(0), 64);
  ASSERT_TRUE(cache->CanGoOnAt(0, 90)) << "no draft was right";
}

INSTANTIATE_TEST_SUITE_P(
    Backends, WindowBackendsTest,
    ::testing::Values(BackendCase{"Reference", [] { return reference::MakeReferenceBackend(); }},
                      BackendCase{"Cpu", [] { return *cpu::MakeCpuBackend({.num_threads = 1}); }},
                      BackendCase{"CpuThreads",
                                  [] { return *cpu::MakeCpuBackend({.num_threads = 3}); }}),
    [](const auto& info) { return info.param.name; });

TEST_F(WindowStepsTest, ABatchThatFailsLetsNothingGo) {
  testing::Faults faults;
  testing::FaultyBackend backend(faults);
  PagePool pool(backend.memory(), 12 * kChunk, kChunk);
  const KvCacheFactory factory({{backend, pool}}, kPageSize);
  const LayerShape shape{{kHeads, kDim, kDim, DType::kFloat32}, 20};
  const Cache cache = *factory.Create(CacheShape({shape}), 0);
  for (std::int64_t begin = 0; begin < 90; begin += 30) {
    ASSERT_TRUE(Run(backend, Step(cache, shape, begin, begin + 30)).status.ok());
  }
  ASSERT_EQ(cache->first_position(0), 32);
  const Answer last = Run(backend, Step(cache, shape, 60, 90));
  faults.run_status = absl::InternalError("broken");
  EXPECT_FALSE(Run(backend, Step(cache, shape, 90, 120)).status.ok());
  EXPECT_FALSE(RunSliced(backend, Step(cache, shape, 90, 120)).status.ok());
  faults.run_status = absl::OkStatus();
  EXPECT_EQ(cache->length(0), 90);
  EXPECT_EQ(cache->first_position(0), 32);
  EXPECT_TRUE(Run(backend, Step(cache, shape, 60, 90)).SameBits(last));
  EXPECT_TRUE(Run(backend, Step(cache, shape, 90, 120)).status.ok());
  EXPECT_EQ(cache->first_position(0), 64);
}

TEST_F(WindowStepsTest, OfSeveralStepsInABatchTheFirstCanBeRepeated) {
  const auto backend = reference::MakeReferenceBackend();
  PagePool pool(backend->memory(), 12 * kChunk, kChunk);
  const KvCacheFactory factory({{*backend, pool}}, kPageSize);
  const LayerShape shape{{kHeads, kDim, kDim, DType::kFloat32}, 16};
  const Cache cache = *factory.Create(CacheShape({shape}), 0);
  ASSERT_TRUE(Run(*backend, Step(cache, shape, 0, 80)).status.ok());
  std::deque<Answer> answers;
  std::vector<std::unique_ptr<AttentionRequest>> requests;
  for (const std::int64_t begin : {80, 100, 140}) {
    requests.push_back(
        Request(Step(cache, shape, begin, begin == 80 ? 100 : begin + 40), answers.emplace_back()));
  }
  Worker(*backend, clock_, metrics_).Execute({std::move(requests), clock_.Now()});
  for (const Answer& answer : answers) ASSERT_TRUE(answer.status.ok()) << answer.status;
  EXPECT_EQ(cache->first_position(0), 64);
  EXPECT_TRUE(Run(*backend, Step(cache, shape, 80, 100)).SameBits(answers[0]));
  const Answer older = Run(*backend, Step(cache, shape, 40, 80));
  EXPECT_EQ(GetErrorDetail(older.status)->reason, "WINDOW_DROPPED");
  EXPECT_EQ(GetErrorDetail(older.status)->metadata["first_position"], "64");
}

}  // namespace
}  // namespace attention::server
