// Checks a sample of the answers against the oracle. The checks wait until the run is over, so as
// not to take the processor from what is measured; only when the waiting answers outgrow a limit
// are they checked meanwhile, and the virtual users that brought them held back. Thread-safe.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "client/loadgen/oracle.h"
#include "client/loadgen/tensor_pool.h"
#include "client/loadgen/workload.h"

namespace attention::loadgen {

struct VerifyResult {
  std::int64_t num_checked = 0;
  std::int64_t rows_checked = 0;  // queries of those; see oracle.h
  std::int64_t num_mismatches = 0;
  std::int64_t num_unchecked = 0;       // chosen, but interrupted before their turn
  std::vector<std::string> mismatches;  // of the first few: the request and what was wrong
};

class Verifier {
 public:
  static constexpr std::int64_t kDefaultMaxPendingBytes = std::int64_t{256} << 20;

  // Chooses `fraction` of the answers. `pool` must outlive the verifier.
  Verifier(const TensorPool& pool, double fraction, std::uint64_t seed,
           std::int64_t max_pending_bytes = kDefaultMaxPendingBytes);
  // Drops what is pending.
  ~Verifier();

  // Draws whether the next answer is to be checked.
  bool Wants();
  // Takes the answer. `resume` is called exactly once: at once, or when enough has been checked.
  void Submit(Answer answer, std::function<void()> resume);

  // Checks what is pending. `poll` is called some twenty times a second with the number of answers
  // left, and ends it by returning true.
  VerifyResult Finish(const std::function<bool(std::int64_t)>& poll);

 private:
  void RunChecks();
  bool HasTurn() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Those held back, if they may go on.
  std::vector<std::function<void()>> TakeResumes() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Count(const Answer& answer, const CheckedAnswer& checked);

  const TensorPool& pool_;
  const double fraction_;
  const std::int64_t max_pending_bytes_;
  mutable absl::Mutex mutex_;
  std::mt19937_64 random_ ABSL_GUARDED_BY(mutex_);
  std::deque<Answer> pending_ ABSL_GUARDED_BY(mutex_);
  std::int64_t pending_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  int num_checking_ ABSL_GUARDED_BY(mutex_) = 0;
  std::vector<std::function<void()>> held_ ABSL_GUARDED_BY(mutex_);
  bool is_finishing_ ABSL_GUARDED_BY(mutex_) = false;
  bool is_stopping_ ABSL_GUARDED_BY(mutex_) = false;
  VerifyResult result_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::jthread> threads_;
};

}  // namespace attention::loadgen
