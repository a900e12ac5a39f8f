// Sessions on a device, and a plain model of what they hold, for tests that do anything with both.
#pragma once

#include <gmock/gmock.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <numeric>
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
#include "tests/unit/server/engine/run_alone.h"

namespace attention::server {

inline constexpr int kLayers = 3;
inline constexpr int kHeads = 2;
inline constexpr int kDim = 8;
inline constexpr std::int64_t kRow = kHeads * kDim;
inline constexpr std::int64_t kMaxLength = 120;
inline constexpr std::int64_t kPageSize = 16;
inline constexpr std::size_t kMaxSessions = 10;
inline constexpr std::size_t kChunk = std::size_t{1} << 15;

using Rows = std::vector<std::uint32_t>;  // each token's row, by the seed of its content

// All keys; a window and sinks; a window of latent keys.
inline LayerShape ShapeOf(int layer, DType dtype) {
  if (layer == 0) return {{kHeads, kDim, kDim, dtype}};
  if (layer == 1) return {{kHeads, kDim, kDim, dtype}, /*window_tokens=*/24, /*sink_tokens=*/3};
  return {{kHeads, kDim, kDim, DType::kFloat32, /*value_is_key_prefix=*/true}, 16};
}
inline CacheShape ShapeOfAll(DType dtype) {
  std::vector<LayerShape> layers;
  for (int layer = 0; layer < kLayers; ++layer) layers.push_back(ShapeOf(layer, dtype));
  return CacheShape(std::move(layers));
}
inline std::int64_t SinkEnd(const LayerShape& shape) {
  return RoundUp(shape.sink_tokens, kPageSize);
}

// The tokens of a layer, of each head, behind those that were let go by a call. Those that a window
// lets go stay in the model, where it knows which they are.
struct LayerModel {
  Rows heads[kHeads];
  std::int64_t num_dropped = 0;
  std::int64_t compacted_length = 0;
  std::int64_t first = 0;  // token that is there behind the sinks' pages

  std::int64_t num_held() const { return std::ssize(heads[0]); }
  std::int64_t length() const { return num_dropped + num_held(); }
  // The first tokens, up to this length.
  LayerModel Prefix(std::int64_t length) const {
    LayerModel prefix = *this;
    for (Rows& rows : prefix.heads) rows.resize(static_cast<std::size_t>(length - num_dropped));
    if (length == 0) prefix.first = 0;
    return prefix;
  }
  // A step appends rows.
  void Append(const LayerShape& shape, const Rows& rows) {
    LetGo(shape, length());
    for (Rows& head : heads) head.insert(head.end(), rows.begin(), rows.end());
  }
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
  // The newest of `length` tokens sees one that has been let go.
  bool IsDropped(const LayerShape& shape, std::int64_t length) const {
    if (first == 0) return false;
    return std::max(length - shape.window_tokens, SinkEnd(shape)) < std::min(first, length);
  }
};

struct Model {
  std::shared_ptr<KvCache> cache;
  LayerModel layers[kLayers];

  std::int64_t committed() const {
    std::int64_t least = layers[0].length();
    for (const LayerModel& layer : layers) least = std::min(least, layer.length());
    return least;
  }
  // Why the session cannot be cut to this length; empty: it can.
  std::string WhyNotCutTo(std::int64_t length) const {
    if (length > committed()) return "POSITION_MISMATCH";
    for (int i = 0; i < kLayers; ++i) {
      if (!layers[i].CanGoOnAt(cache->shape().layer(i), length)) return "WINDOW_DROPPED";
    }
    for (const LayerModel& layer : layers) {
      if (layer.length() > length && length < layer.compacted_length) return "TOKENS_DROPPED";
    }
    return "";
  }
  bool HasLetGo() const {
    return std::any_of(std::begin(layers), std::end(layers),
                       [](const LayerModel& layer) { return layer.first > 0; });
  }
};

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

  // The values of rows, k and v one after another, each head's by its own content.
  static std::vector<float> Values(const Rows (&heads)[kHeads]) {
    std::vector<float> values;
    values.reserve(heads[0].size() * 2 * kRow);
    for (std::size_t token = 0; token < heads[0].size(); ++token) {
      for (int i = 0; i < 2 * kRow; ++i) {
        const std::uint32_t row = heads[i % kRow / kDim][token];
        std::uint32_t state = (row * 64 + static_cast<std::uint32_t>(i)) * 2654435761u + 1;
        state = state * 1664525u + 1013904223u;
        values.push_back(static_cast<float>(state >> 8) / (1 << 23) - 1);
      }
    }
    return values;
  }
  SessionStep Step(const std::shared_ptr<KvCache>& cache, int layer, std::int64_t position,
                   const Rows& rows) {
    return Step(cache, layer, position, {rows, rows}, cache->shape().layer(layer));
  }

  // A step that appends the rows, if there are any, and attends over the tokens then, with the
  // config of a layer of that shape.
  SessionStep Step(const std::shared_ptr<KvCache>& cache, int layer, std::int64_t position,
                   const Rows (&heads)[kHeads], const LayerShape& shape) {
    const Rows& rows = heads[0];
    SessionStep step;
    step.cache = cache;
    step.layer = layer;
    step.expected_position = position;
    if (!rows.empty()) {
      values_ = Values(heads);
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
    AttentionResult answer = RunAlone(worker_, clock_, std::move(request));
    clock_.Advance(absl::Seconds(1));
    return answer;
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

  // The output of attention over what the layer holds, in a cache that never had anything else and
  // keeps it all.
  std::vector<float> Alone(int layer, const LayerModel& held) {
    const LayerShape shape = ShapeOf(layer, GetParam());
    const std::shared_ptr<KvCache> cache = *unlimited_.Create(shape.geometry, 1, 0, "oracle");
    EXPECT_TRUE(Run(Step(cache, 0, 0, held.heads, shape)).status.ok());
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
    const LayerModel& held = session.layers[layer];
    ASSERT_EQ(session.cache->length(layer), held.length());
    ASSERT_EQ(session.cache->num_held(layer), held.num_held());
    const std::int64_t least = std::max<std::int64_t>(held.compacted_length, held.num_dropped + 1);
    if (least > held.length() || held.num_held() == 0) return;
    const std::int64_t length = Any(0, 2) == 0 ? Any(least, held.length()) : held.length();
    const std::vector<float> expected = Alone(layer, held.Prefix(length));
    const StepOutcome outcome = Run(Step(session.cache, layer, length, Rows()));
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

}  // namespace attention::server
