// Turns the requests of a batch into what a backend runs: appends in order, then attention tasks.
// Requests and steps that cannot run are marked with their error and leave the others alone. A
// change of caches, which is alone in its batch, is made at once.
//
// Used by one worker thread; lives for one batch.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "kernels/api/attention_backend.h"
#include "server/cache/kv_cache.h"
#include "server/domain/attention_request.h"
#include "server/domain/step_resolution.h"
#include "server/engine/spiller.h"

namespace attention::server {

class BatchAssembly {
 public:
  // `spiller` may be null; else it must outlive the assembly, and keeps the caches of its steps on
  // the device for as long.
  explicit BatchAssembly(AttentionBackend& backend, Spiller* spiller = nullptr)
      : backend_(backend), spiller_(spiller) {}
  ~BatchAssembly();
  BatchAssembly(const BatchAssembly&) = delete;
  BatchAssembly& operator=(const BatchAssembly&) = delete;

  // Adds a request's work. `result` must outlive the assembly; it receives the outcomes of its
  // steps.
  void Add(AttentionRequest& request, AttentionResult& result);

  // True when a change of caches has been made. It must not fail any more, and nothing else is
  // there to run.
  bool has_changed() const { return has_changed_; }

  // Rows to write, one task for each layer of a cache: what several steps append to it follows each
  // other. The tasks refer to steps and to the assembly. Once.
  std::vector<KvAppendTask> Appends();

  // Attention over the caches as they will be after the appends. Views are valid until the next
  // batch.
  std::vector<AttentionTask> Tasks();

  // Attention weights that are wanted, to be computed after the appends.
  std::vector<WeightsTask> weights() const;
  // The projections before the appends, and those after the attention.
  const std::vector<ProjectionTask>& inputs() const { return inputs_; }
  const std::vector<ProjectionTask>& outputs() const { return outputs_; }
  std::int64_t tokens_appended() const { return tokens_appended_; }

  // To be called when all has been computed: layers with windows let go what no step after this
  // batch can see, nor a repetition of one of its own.
  void Commit() noexcept;
  // Takes every append back: the caches have the lengths they had before the batch.
  void RollBack();

 private:
  struct Append {
    KvCache* cache;
    const SessionStep* step;
    std::int64_t position;  // among the tokens that the layer holds
  };
  struct RowsOfSteps {
    std::vector<RowsPiece> k;
    std::vector<RowsPiece> v;
  };
  struct Attend {
    const SessionStep* step;  // null: a stateless task
    StepOutcome* outcome;     // null with step
    AttentionTask task;
  };
  struct OldLength {
    KvCache* cache;
    int layer;
    std::int64_t length;
  };

  absl::Status Change(const CacheChange& change);
  // `append_position`: where the step appends, if it does.
  absl::Status AddStep(const SessionStep& step, StepOutcome& outcome,
                       std::int64_t& append_position);
  static void AddProjections(const std::vector<RequestProjection>& projections,
                             const AttentionResult& result,
                             const std::vector<std::int64_t>& append_positions,
                             std::vector<ProjectionTask>& tasks);
  absl::Status Hold(const std::shared_ptr<KvCache>& cache);
  absl::Status Extend(KvCache& cache, int layer, std::int64_t new_length);
  // NOT_FOUND LAYER_NOT_FOUND for weights that went with their device's memory.
  static absl::Status CheckProjections(const AttentionRequest& request);

  AttentionBackend& backend_;
  Spiller* const spiller_;
  std::vector<std::shared_ptr<KvCache>> held_;  // by the spiller
  std::vector<Append> appends_;
  std::deque<RowsOfSteps> joined_;  // rows that several steps append to a layer; places stay
  std::vector<Attend> attends_;
  std::vector<WeightsTask> weights_;
  std::vector<ProjectionTask> inputs_;
  std::vector<ProjectionTask> outputs_;
  std::vector<OldLength> old_lengths_;
  // Where the batch began to append to layers with windows.
  std::map<std::pair<KvCache*, int>, std::int64_t> first_appends_;
  std::int64_t tokens_appended_ = 0;
  bool has_changed_ = false;
};

}  // namespace attention::server
