// Random lives of sessions against a plain model of them: what a session answers has the bits of a
// cache to which the same rows were appended alone, whatever was forked, truncated, reordered, let
// go, imported, moved to the host or deleted before. Or it is refused by name, exactly where what
// it would need has gone.
//
// ATTENTION_SESSION_OPERATIONS: how many operations for each type of cache; 10,000 by default.
#include <gmock/gmock.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "tests/unit/server/engine/session_model.h"

namespace attention::server {
namespace {

int NumOperations() {
  const char* given = std::getenv("ATTENTION_SESSION_OPERATIONS");
  return given == nullptr ? 10'000 : std::atoi(given);
}

// Sessions that come, get steps and go.
class SteppedSessions : public ModelledSessions {
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
      LayerModel& held = session.layers[layer];
      if (held.num_held() + std::ssize(rows) > kMaxLength || Any(0, 9) == 0) continue;
      const StepOutcome outcome = Run(Step(session.cache, layer, held.length(), rows));
      if (IsFull(outcome.status)) continue;
      ASSERT_TRUE(outcome.status.ok()) << outcome.status;
      ASSERT_FALSE(outcome.is_replay);
      held.Append(session.cache->shape().layer(layer), rows);
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
      const std::int64_t position = sessions_[i].layers[layer].length();
      appended.push_back(NewRows(Any(1, kMaxLength / 5)));
      request->steps.push_back(Step(sessions_[i].cache, layer, position, appended[i]));
      request->steps.back().attend.reset();
      values.push_back(std::move(values_));
    }
    const AttentionResult result = Execute(std::move(request));
    ASSERT_TRUE(result.status.ok()) << result.status;
    for (std::size_t i = 0; i < count; ++i) {
      if (IsFull(result.steps[i].status)) continue;
      ASSERT_TRUE(result.steps[i].status.ok()) << result.steps[i].status;
      sessions_[i].layers[layer].Append(sessions_[i].cache->shape().layer(layer), appended[i]);
    }
  }
  // Repeats rows, or brings others in their place.
  void Replay() {
    Model& session = AnySession();
    const int layer = static_cast<int>(Any(0, kLayers - 1));
    const LayerModel& held = session.layers[layer];
    if (held.num_held() == 0) return;
    const std::int64_t end = Any(held.num_dropped + 1, held.length());
    const std::int64_t begin = Any(held.num_dropped, end - 1);
    const auto first = held.heads[0].begin() - held.num_dropped;
    Rows rows(first + begin, first + end);
    const bool is_wrong = Any(0, 1) == 0;
    if (is_wrong) rows[Any(0, end - begin - 1)] = NewRows(1)[0];
    const std::vector<float> expected = Alone(layer, held.Prefix(end));
    const StepOutcome outcome = Run(Step(session.cache, layer, begin, rows));
    if (IsFull(outcome.status)) return;
    if (begin < held.first) return ExpectDropped(outcome.status, held.first);
    if (begin < held.compacted_length) {
      ASSERT_EQ(ReasonOf(outcome.status), "TOKENS_DROPPED");
      return;
    }
    if (is_wrong) {
      ASSERT_EQ(ReasonOf(outcome.status), "POSITION_MISMATCH");
      return;
    }
    if (held.IsDropped(session.cache->shape().layer(layer), end)) {
      return ExpectDropped(outcome.status, held.first);
    }
    ASSERT_TRUE(outcome.status.ok()) << outcome.status;
    ASSERT_TRUE(outcome.is_replay);
    ASSERT_EQ(output_, expected);
  }
};

// Changes of whole sessions, too.
class SessionPropertyTest : public SteppedSessions {
 protected:
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
    if (IsRefused(source, length, status)) return;
    ASSERT_TRUE(status.ok()) << status;
    for (const auto& copy : change.copies) {
      Model& made = sessions_.emplace_back(source);
      made.cache = copy;
      for (int layer = 0; layer < kLayers; ++layer) {
        made.layers[layer] = made.layers[layer].Prefix(length);
        made.layers[layer].LetGo(copy->shape().layer(layer), length);
      }
    }
  }
  // True when a length is told to be one that the session cannot be cut to.
  static bool IsRefused(const Model& session, std::int64_t length, const absl::Status& status) {
    const std::string why = session.WhyNotCutTo(length);
    if (!why.empty()) {
      EXPECT_EQ(ReasonOf(status), why) << length;
    }
    return !why.empty();
  }
  // Some of the tokens that go may stay in their place.
  void Truncate() {
    Model& session = AnySession();
    const std::int64_t length = Any(0, session.committed() + 1);
    CacheChange change = ChangeOf(CacheChange::Kind::kTruncate, session, length);
    for (std::int64_t i = length; i < session.committed() && Any(0, 1) == 0; ++i) {
      if (Any(0, 2) > 0) change.accepted.push_back(i - length);
    }
    const absl::Status status = Run(change);
    if (IsFull(status) || IsRefused(session, length, status)) return;
    if (!change.accepted.empty() && length == 0 && session.HasLetGo()) {
      ASSERT_EQ(ReasonOf(status), "WINDOW_DROPPED");
      return;
    }
    ASSERT_TRUE(status.ok()) << status;
    for (LayerModel& layer : session.layers) {
      if (layer.length() <= length) continue;
      LayerModel cut = layer.Prefix(length);
      for (int head = 0; head < kHeads; ++head) {
        for (const std::int64_t token : change.accepted) {
          cut.heads[head].push_back(layer.heads[head][length - layer.num_dropped + token]);
        }
      }
      layer = cut;
    }
  }
  std::vector<std::int64_t> AnyTokens(std::int64_t num_held, std::int64_t count) {
    std::vector<std::int64_t> tokens(static_cast<std::size_t>(num_held));
    std::iota(tokens.begin(), tokens.end(), 0);
    std::shuffle(tokens.begin(), tokens.end(), random_);
    tokens.resize(static_cast<std::size_t>(count));
    std::sort(tokens.begin(), tokens.end());
    return tokens;
  }
  // The same tokens of all heads of a layer, or others of each.
  void Keep() {
    Model& session = AnySession();
    const int layer = static_cast<int>(Any(0, kLayers - 1));
    LayerModel& held = session.layers[layer];
    const bool has_window = session.cache->shape().layer(layer).has_window();
    const std::int64_t count = Any(0, held.num_held());
    const bool is_by_head = Any(0, 1) == 0;
    CacheChange change = ChangeOf(CacheChange::Kind::kKeep, session, 0);
    LayerModel kept = held;
    for (int head = 0; head < kHeads; ++head) {
      if (head == 0 || is_by_head) {
        KeptTokens& tokens = change.keep.emplace_back();
        tokens.layer = layer;
        if (is_by_head) tokens.kv_head = head;
        tokens.num_tokens = held.num_held();
        tokens.tokens = AnyTokens(held.num_held(), count);
      }
      kept.heads[head].clear();
      for (const std::int64_t token : change.keep.back().tokens) {
        kept.heads[head].push_back(held.heads[head][token]);
      }
    }
    absl::Status status = Run(change);
    if (IsFull(status)) return;
    ASSERT_EQ(absl::IsInvalidArgument(status), has_window) << status;
    if (has_window) return;
    ASSERT_TRUE(status.ok()) << status;
    if (count == held.num_held()) return;
    kept.compacted_length = held.length();
    kept.num_dropped = held.length() - count;
    held = kept;
    status = Run(change);  // a repetition
    ASSERT_TRUE(IsFull(status) || ReasonOf(status) == "POSITION_MISMATCH") << status;
  }
  void Reorder() {
    std::shuffle(sessions_.begin(), sessions_.end(), random_);
    const std::int64_t count = Any(1, std::ssize(sessions_));
    const std::vector<Model> before(sessions_.begin(), sessions_.begin() + count);
    CacheChange change;
    change.kind = CacheChange::Kind::kReorder;
    change.change_id = ++last_row_;
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

  // A session of the same rows, as another server would make it of what this one has read.
  void Import() {
    const Model source = AnySession();
    if (sessions_.size() >= kMaxSessions || source.HasLetGo()) return;
    Model made = source;
    made.cache = *factory_.Create(ShapeOfAll(GetParam()), 0, "a");
    for (int layer = 0; layer < kLayers; ++layer) {
      const LayerModel& held = source.layers[layer];
      made.cache->SetCompacted(layer, held.num_dropped, held.compacted_length);
      for (std::int64_t begin = 0; begin < held.num_held();) {
        const std::int64_t count = Any(1, held.num_held() - begin);
        if (!Transfer(source, made, layer, begin, count)) return;
        begin += count;
      }
    }
    sessions_.push_back(made);
  }
  // False when there was no room.
  bool Transfer(const Model& from, const Model& to, int layer, std::int64_t begin,
                std::int64_t count) {
    const KvGeometry& geometry = to.cache->geometry(layer);
    std::vector<float> memory(StoredRowsLayout::Of(geometry, count).bytes / sizeof(float) + 1);
    std::vector<std::uint32_t> checksums;
    const RowsTransfer rows{
        layer, begin, count,
        StoredRowsIn(geometry, count, reinterpret_cast<std::byte*>(memory.data())), &checksums};
    for (const auto kind : {CacheChange::Kind::kRead, CacheChange::Kind::kWrite}) {
      CacheChange change = ChangeOf(kind, kind == CacheChange::Kind::kRead ? from : to, 0);
      change.rows = rows;
      const absl::Status status = Run(change);
      EXPECT_TRUE(status.ok() || IsFull(status)) << status;
      if (!status.ok()) return false;
    }
    return true;
  }

  void Operate() {
    if (sessions_.empty()) return Create();
    switch (Any(0, 18)) {
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
      case 13:
      case 14:
        return Keep();
      case 15:
        return Import();
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
