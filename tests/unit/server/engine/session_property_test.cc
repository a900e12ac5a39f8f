// Random lives of sessions against a plain model of them: what a session answers has the bits of a
// cache to which the same rows were appended alone, whatever was forked, truncated, reordered,
// moved to the host or deleted before. Or it is refused by name, exactly where a window has let go
// what it would need.
//
// ATTENTION_SESSION_OPERATIONS: how many operations for each type of cache; 10,000 by default.
#include <gmock/gmock.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "kernels/base/divide.h"
#include "kernels/cpu/cpu_backend.h"
#include "server/base/error_reason.h"
#include "server/cache/kv_cache_factory.h"
#include "server/domain/row_checksums.h"
#include "server/engine/worker.h"
#include "tests/support/fake_clock.h"

namespace attention::server {
namespace {

constexpr int kLayers = 3;
constexpr int kHeads = 2;
constexpr int kDim = 8;
constexpr std::int64_t kRow = kHeads * kDim;
constexpr std::int64_t kMaxLength = 120;
constexpr std::int64_t kPageSize = 16;
constexpr std::size_t kMaxSessions = 10;
constexpr std::size_t kChunk = std::size_t{1} << 15;

using Rows = std::vector<std::uint32_t>;  // each token's row, by the seed of its content

// All keys; a window and sinks; a window of latent keys.
LayerShape ShapeOf(int layer, DType dtype) {
  if (layer == 0) return {{kHeads, kDim, kDim, dtype}};
  if (layer == 1) return {{kHeads, kDim, kDim, dtype}, /*window_tokens=*/24, /*sink_tokens=*/3};
  return {{kHeads, kDim, kDim, DType::kFloat32, /*value_is_key_prefix=*/true}, 16};
}
CacheShape ShapeOfAll(DType dtype) {
  std::vector<LayerShape> layers;
  for (int layer = 0; layer < kLayers; ++layer) layers.push_back(ShapeOf(layer, dtype));
  return CacheShape(std::move(layers));
}
std::int64_t SinkEnd(const LayerShape& shape) { return RoundUp(shape.sink_tokens, kPageSize); }

struct ModelLayer {
  Rows rows;
  std::int64_t first = 0;  // token that is there behind the sinks' pages

  std::int64_t length() const { return std::ssize(rows); }
  // A step at `position` has been computed, or a copy goes on there.
  void LetGo(const LayerShape& shape, std::int64_t position) {
    if (!shape.has_window()) return;
    const std::int64_t kept =
        RoundDown(std::max<std::int64_t>(0, position - shape.window_tokens), kPageSize);
    if (kept > SinkEnd(shape)) first = std::max(first, kept);
  }
  bool CanGoOnAt(const LayerShape& shape, std::int64_t length) const {
    return first == 0 || length == 0 || length - shape.window_tokens >= first;
  }
  void Truncate(std::int64_t length) {
    if (rows.size() <= static_cast<std::size_t>(length)) return;
    rows.resize(static_cast<std::size_t>(length));
    if (length == 0) first = 0;
  }
  // The newest of `length` tokens sees one that has been let go.
  bool IsDropped(const LayerShape& shape, std::int64_t length) const {
    if (first == 0) return false;
    return std::max(length - shape.window_tokens, SinkEnd(shape)) < std::min(first, length);
  }
};

struct Model {
  std::shared_ptr<KvCache> cache;
  ModelLayer layers[kLayers];

  std::int64_t committed() const {
    std::int64_t least = layers[0].length();
    for (const ModelLayer& layer : layers) least = std::min(least, layer.length());
    return least;
  }
  bool CanGoOnAt(std::int64_t length) const {
    for (int i = 0; i < kLayers; ++i) {
      if (!layers[i].CanGoOnAt(cache->shape().layer(i), length)) return false;
    }
    return true;
  }
};

int NumOperations() {
  const char* given = std::getenv("ATTENTION_SESSION_OPERATIONS");
  return given == nullptr ? 10'000 : std::atoi(given);
}

// A device, its sessions, and what is known of them.
class ModelledSessions : public ::testing::TestWithParam<DType> {
 protected:
  ModelledSessions() {
    limits_.Replace({{.kv_bytes = static_cast<std::int64_t>(10 * kChunk)}, {}});
  }
  ~ModelledSessions() override {
    sessions_.clear();
    EXPECT_EQ(pages_.used_bytes() + host_.used_bytes(), 0u) << "a page is left";
    EXPECT_EQ(ledger_.HeldBy("a"), 0);
  }

  std::int64_t Any(std::int64_t begin, std::int64_t end) {  // both included
    return std::uniform_int_distribution<std::int64_t>(begin, end)(random_);
  }
  Model& AnySession() { return sessions_[Any(0, std::ssize(sessions_) - 1)]; }
  Rows NewRows(std::int64_t count) {
    Rows rows;
    for (std::int64_t i = 0; i < count; ++i) rows.push_back(++last_row_);
    return rows;
  }

  // The values of rows, k and v one after another.
  static std::vector<float> Values(const Rows& rows) {
    std::vector<float> values;
    values.reserve(rows.size() * 2 * kRow);
    for (const std::uint32_t row : rows) {
      std::uint32_t state = row * 2654435761u + 1;
      for (int i = 0; i < 2 * kRow; ++i) {
        state = state * 1664525u + 1013904223u;
        values.push_back(static_cast<float>(state >> 8) / (1 << 23) - 1);
      }
    }
    return values;
  }

  // A step that appends the rows, if there are any, and attends over the tokens then.
  SessionStep Step(const std::shared_ptr<KvCache>& cache, int layer, std::int64_t position,
                   const Rows& rows) {
    return Step(cache, layer, position, rows, cache->shape().layer(layer));
  }
  // The same, with the config of a layer of that shape.
  SessionStep Step(const std::shared_ptr<KvCache>& cache, int layer, std::int64_t position,
                   const Rows& rows, const LayerShape& shape) {
    SessionStep step;
    step.cache = cache;
    step.layer = layer;
    step.expected_position = position;
    if (!rows.empty()) {
      values_ = Values(rows);
      StepAppend& append = step.append.emplace();
      append.num_tokens = std::ssize(rows);
      append.k = {values_.data(), DType::kFloat32, 2 * kRow, kDim};
      if (!shape.geometry.value_is_key_prefix) {
        append.v = {values_.data() + kRow, DType::kFloat32, 2 * kRow, kDim};
      }
      append.checksums = rows;
    }
    AttentionTask& task = step.attend.emplace().task;
    task.params = {kHeads, kHeads, kDim, kDim};
    task.params.softmax_scale = 1;
    task.params.kv_dtype = shape.geometry.dtype;
    task.params.value_is_key_prefix = shape.geometry.value_is_key_prefix;
    task.params.is_causal = shape.has_window();
    task.params.window_left = shape.window_tokens - 1;
    task.params.sink_tokens = shape.sink_tokens;
    task.q_len = 1;
    task.q = DenseRows(static_cast<const void*>(query_.data()), DType::kFloat32, kHeads, kDim);
    task.o = DenseRows(static_cast<void*>(output_.data()), DType::kFloat32, kHeads, kDim);
    return step;
  }

  AttentionResult Execute(std::unique_ptr<AttentionRequest> request) {
    std::optional<AttentionResult> answer;
    request->arrival = clock_.Now();
    request->completion = [&](std::unique_ptr<AttentionRequest>, AttentionResult result) {
      EXPECT_FALSE(answer.has_value()) << "completed twice";
      answer = std::move(result);
    };
    std::vector<std::unique_ptr<AttentionRequest>> requests;
    requests.push_back(std::move(request));
    worker_.Execute({std::move(requests), clock_.Now()});
    clock_.Advance(absl::Seconds(1));
    return *std::move(answer);
  }
  StepOutcome Run(SessionStep step) {
    auto request = std::make_unique<AttentionRequest>();
    request->steps.push_back(std::move(step));
    AttentionResult result = Execute(std::move(request));
    EXPECT_TRUE(result.status.ok()) << result.status;
    StepOutcome outcome;
    outcome.status = result.status;
    return result.status.ok() ? std::move(result.steps[0]) : std::move(outcome);
  }
  static CacheChange ChangeOf(CacheChange::Kind kind, const Model& session, std::int64_t length) {
    CacheChange change;
    change.kind = kind;
    change.caches.push_back(session.cache);
    change.length = length;
    return change;
  }
  absl::Status Run(CacheChange change) {
    auto request = std::make_unique<AttentionRequest>();
    request->change = std::move(change);
    return Execute(std::move(request)).status;
  }

  static std::string ReasonOf(const absl::Status& status) {
    const auto detail = GetErrorDetail(status);
    return detail.has_value() ? std::string(detail->reason) : std::string();
  }
  static bool IsFull(const absl::Status& status) {
    return ReasonOf(status) == "KV_EXHAUSTED" || ReasonOf(status) == "QUOTA_EXCEEDED";
  }

  // The output of attention over the first rows of a layer, in a cache that never had others and
  // keeps them all.
  std::vector<float> Alone(int layer, const Rows& rows, std::int64_t length) {
    const LayerShape shape = ShapeOf(layer, GetParam());
    const std::shared_ptr<KvCache> cache = *unlimited_.Create(shape.geometry, 1, 0, "oracle");
    const Rows first(rows.begin(), rows.begin() + length);
    EXPECT_TRUE(Run(Step(cache, 0, 0, first, shape)).status.ok());
    return output_;
  }

  // The status is that of an attempt that needs what is not there any more.
  void ExpectDropped(const absl::Status& status, std::int64_t first) {
    ASSERT_EQ(ReasonOf(status), "WINDOW_DROPPED") << status;
    ASSERT_EQ(GetErrorDetail(status)->metadata["first_position"], std::to_string(first));
    ++num_dropped_;
  }

  // Attends over a prefix of a layer, and compares.
  void Check(const Model& session) {
    const int layer = static_cast<int>(Any(0, kLayers - 1));
    const ModelLayer& held = session.layers[layer];
    const Rows& rows = held.rows;
    ASSERT_EQ(session.cache->length(layer), held.length());
    if (rows.empty()) return;
    const std::int64_t length = Any(0, 2) == 0 ? Any(1, held.length()) : held.length();
    const std::vector<float> expected = Alone(layer, rows, length);
    const StepOutcome outcome = Run(Step(session.cache, layer, length, {}));
    if (IsFull(outcome.status)) return;  // it could not come back from the host
    if (held.IsDropped(session.cache->shape().layer(layer), length)) {
      return ExpectDropped(outcome.status, held.first);
    }
    ASSERT_TRUE(outcome.status.ok()) << outcome.status;
    ASSERT_EQ(output_, expected) << "layer " << layer << ", " << length << " tokens";
  }

  std::mt19937 random_{static_cast<std::uint32_t>(GetParam())};
  FakeClock clock_;
  ServerMetrics metrics_;
  std::unique_ptr<AttentionBackend> backend_ = *cpu::MakeCpuBackend({.num_threads = 1});
  PagePool pages_{backend_->memory(), 12 * kChunk, kChunk};
  PagePool host_{backend_->memory(), 12 * kChunk, kChunk};
  PagePool of_oracle_{backend_->memory(), 4 * kChunk, kChunk};
  CacheList caches_;
  Spiller spiller_{*backend_, pages_, host_, caches_, absl::Seconds(2), clock_, metrics_};
  Worker worker_{*backend_, clock_, metrics_, {.spiller = &spiller_}};
  TenantLimitsTable limits_;
  TenantLedger ledger_{TenantLimit::kKvBytes, &TenantLimits::kv_bytes, limits_};
  KvCacheFactory factory_{{{*backend_, pages_, &caches_, &host_}}, kPageSize, &ledger_};
  KvCacheFactory unlimited_{{{*backend_, of_oracle_}}, /*page_size=*/32};
  std::vector<Model> sessions_;
  std::uint32_t last_row_ = 0;
  int num_dropped_ = 0;
  std::vector<float> values_;
  const std::vector<float> query_ = std::vector<float>(kRow, 0.7f);
  std::vector<float> output_ = std::vector<float>(kRow);
};

// The operations.
class SessionPropertyTest : public ModelledSessions {
 protected:
  void Create() {
    if (sessions_.size() >= kMaxSessions) return Delete();
    sessions_.push_back({*factory_.Create(ShapeOfAll(GetParam()), 0, "a"), {}});
  }
  void Delete() {
    if (sessions_.empty()) return;
    std::swap(AnySession(), sessions_.back());
    sessions_.pop_back();
  }
  void Append() {
    Model& session = AnySession();
    const Rows rows = NewRows(Any(1, 25));
    for (int layer = 0; layer < kLayers; ++layer) {
      ModelLayer& held = session.layers[layer];
      if (held.length() + std::ssize(rows) > kMaxLength || Any(0, 9) == 0) continue;
      const StepOutcome outcome = Run(Step(session.cache, layer, held.length(), rows));
      if (IsFull(outcome.status)) continue;
      ASSERT_TRUE(outcome.status.ok()) << outcome.status;
      ASSERT_FALSE(outcome.is_replay);
      held.LetGo(session.cache->shape().layer(layer), held.length());
      held.rows.insert(held.rows.end(), rows.begin(), rows.end());
    }
  }
  // Several sessions in one batch.
  void AppendTogether() {
    std::shuffle(sessions_.begin(), sessions_.end(), random_);
    const int layer = static_cast<int>(Any(0, kLayers - 1));
    const auto count =
        static_cast<std::size_t>(Any(1, std::min<std::int64_t>(4, std::ssize(sessions_))));
    auto request = std::make_unique<AttentionRequest>();
    std::vector<std::vector<float>> values;
    std::vector<Rows> appended;
    for (std::size_t i = 0; i < count; ++i) {
      const ModelLayer& held = sessions_[i].layers[layer];
      appended.push_back(NewRows(Any(1, kMaxLength / 5)));
      request->steps.push_back(Step(sessions_[i].cache, layer, held.length(), appended[i]));
      request->steps.back().attend.reset();
      values.push_back(std::move(values_));
    }
    const AttentionResult result = Execute(std::move(request));
    ASSERT_TRUE(result.status.ok()) << result.status;
    for (std::size_t i = 0; i < count; ++i) {
      if (IsFull(result.steps[i].status)) continue;
      ASSERT_TRUE(result.steps[i].status.ok()) << result.steps[i].status;
      ModelLayer& held = sessions_[i].layers[layer];
      held.LetGo(sessions_[i].cache->shape().layer(layer), held.length());
      held.rows.insert(held.rows.end(), appended[i].begin(), appended[i].end());
    }
  }
  // Repeats rows, or brings others in their place.
  void Replay() {
    Model& session = AnySession();
    const int layer = static_cast<int>(Any(0, kLayers - 1));
    const ModelLayer& model = session.layers[layer];
    const Rows& held = model.rows;
    if (held.empty()) return;
    const std::int64_t end = Any(1, std::ssize(held)), begin = Any(0, end - 1);
    Rows rows(held.begin() + begin, held.begin() + end);
    const bool is_wrong = Any(0, 1) == 0;
    if (is_wrong) rows[Any(0, end - begin - 1)] = NewRows(1)[0];
    const std::vector<float> expected = Alone(layer, held, end);
    const StepOutcome outcome = Run(Step(session.cache, layer, begin, rows));
    if (IsFull(outcome.status)) return;
    if (begin < model.first) return ExpectDropped(outcome.status, model.first);
    if (is_wrong) {
      ASSERT_EQ(ReasonOf(outcome.status), "POSITION_MISMATCH");
      return;
    }
    if (model.IsDropped(session.cache->shape().layer(layer), end)) {
      return ExpectDropped(outcome.status, model.first);
    }
    ASSERT_TRUE(outcome.status.ok()) << outcome.status;
    ASSERT_TRUE(outcome.is_replay);
    ASSERT_EQ(output_, expected);
  }
  void Fork() {
    const Model source = AnySession();
    const std::int64_t length = Any(0, source.committed() + 1);
    CacheChange change = ChangeOf(CacheChange::Kind::kFork, source, length);
    const auto num_copies = std::min<std::int64_t>(Any(1, 3), kMaxSessions - sessions_.size());
    for (std::int64_t i = 0; i < num_copies; ++i) {
      change.copies.push_back(factory_.CreateLike(*source.cache));
    }
    const absl::Status status = Run(change);
    if (IsFull(status)) return;
    if (length > source.committed()) {
      ASSERT_EQ(ReasonOf(status), "POSITION_MISMATCH");
      return;
    }
    if (!source.CanGoOnAt(length)) {
      ASSERT_EQ(ReasonOf(status), "WINDOW_DROPPED");
      return;
    }
    ASSERT_TRUE(status.ok()) << status;
    for (const auto& copy : change.copies) {
      Model& made = sessions_.emplace_back(source);
      made.cache = copy;
      for (int layer = 0; layer < kLayers; ++layer) {
        made.layers[layer].Truncate(length);
        made.layers[layer].LetGo(copy->shape().layer(layer), length);
      }
    }
  }
  void Truncate() {
    Model& session = AnySession();
    const std::int64_t length = Any(0, session.committed() + 1);
    const absl::Status status = Run(ChangeOf(CacheChange::Kind::kTruncate, session, length));
    if (IsFull(status)) return;
    if (length > session.committed()) {
      ASSERT_EQ(ReasonOf(status), "POSITION_MISMATCH");
      return;
    }
    if (!session.CanGoOnAt(length)) {
      ASSERT_EQ(ReasonOf(status), "WINDOW_DROPPED");
      return;
    }
    ASSERT_TRUE(status.ok()) << status;
    for (ModelLayer& layer : session.layers) layer.Truncate(length);
  }
  void Reorder() {
    std::shuffle(sessions_.begin(), sessions_.end(), random_);
    const std::int64_t count = Any(1, std::ssize(sessions_));
    const std::vector<Model> before(sessions_.begin(), sessions_.begin() + count);
    CacheChange change;
    change.kind = CacheChange::Kind::kReorder;
    change.reorder_id = ++last_row_;
    for (std::int64_t i = 0; i < count; ++i) {
      change.caches.push_back(sessions_[i].cache);
      change.sources.push_back(static_cast<std::size_t>(Any(0, count - 1)));
    }
    absl::Status status = Run(change);
    if (IsFull(status)) return;
    ASSERT_TRUE(status.ok()) << status;
    status = Run(change);  // a repetition
    ASSERT_TRUE(status.ok() || IsFull(status)) << status;
    for (std::int64_t i = 0; i < count; ++i) {
      const Model& source = before[change.sources[i]];
      std::copy(std::begin(source.layers), std::end(source.layers),
                std::begin(sessions_[i].layers));
    }
  }
  // As the spiller would, when a device is full.
  void Spill() {
    KvCache& cache = *AnySession().cache;
    if (!cache.is_spilled()) cache.Spill(*backend_, host_).IgnoreError();
  }

  void Operate() {
    if (sessions_.empty()) return Create();
    switch (Any(0, 15)) {
      case 0:
        return Create();
      case 1:
        return Delete();
      case 2:
        return Spill();
      case 3:
      case 4:
        return Replay();
      case 5:
      case 6:
      case 7:
        return Fork();
      case 8:
      case 9:
        return Truncate();
      case 10:
        return Reorder();
      case 11:
      case 12:
        return AppendTogether();
      default:
        return Append();
    }
  }
};

TEST_P(SessionPropertyTest, AnswersHaveTheBitsOfTheSameRowsAlone) {
  const int num_operations = NumOperations();
  for (int i = 0; i < num_operations; ++i) {
    SCOPED_TRACE(::testing::Message() << "operation " << i);
    Operate();
    if (HasFatalFailure()) return;
    if (sessions_.empty()) continue;
    Check(AnySession());
    if (HasFatalFailure()) return;
  }
  EXPECT_GT(metrics_.sessions_restored.value(), 0);
  EXPECT_GT(num_dropped_, 0);
}

std::string NameOf(const ::testing::TestParamInfo<DType>& info) {
  switch (info.param) {
    case DType::kFloat16:
      return "Float16";
    case DType::kBFloat16:
      return "BFloat16";
    case DType::kInt8:
      return "Int8";
    case DType::kFloat8E4M3:
      return "Float8E4M3";
    default:
      return "Float32";
  }
}

INSTANTIATE_TEST_SUITE_P(Types, SessionPropertyTest,
                         ::testing::Values(DType::kFloat32, DType::kFloat16, DType::kBFloat16,
                                           DType::kInt8, DType::kFloat8E4M3),
                         NameOf);

}  // namespace
}  // namespace attention::server
