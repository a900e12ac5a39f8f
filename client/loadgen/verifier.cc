#include "client/loadgen/verifier.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace attention::loadgen {
namespace {

constexpr std::size_t kMaxMessages = 10;
constexpr absl::Duration kPollInterval = absl::Milliseconds(50);

std::int64_t BytesOf(const Answer& answer) {
  return static_cast<std::int64_t>(answer.output.bytes().size());
}

}  // namespace

Verifier::Verifier(const TensorPool& pool, double fraction, std::uint64_t seed,
                   std::int64_t max_pending_bytes)
    : pool_(pool), fraction_(fraction), max_pending_bytes_(max_pending_bytes), random_(seed) {
  if (fraction_ <= 0) return;
  const unsigned cores = std::max(1u, std::thread::hardware_concurrency());
  for (unsigned i = 0; i < cores; ++i) threads_.emplace_back([this] { RunChecks(); });
}

Verifier::~Verifier() {
  absl::MutexLock lock(&mutex_);
  is_stopping_ = true;
  // The threads are joined by their destructors, after this lock's.
}

bool Verifier::Wants() {
  if (fraction_ <= 0) return false;
  absl::MutexLock lock(&mutex_);
  return static_cast<double>(random_() >> 11) * 0x1p-53 < fraction_;
}

void Verifier::Submit(Answer answer, std::function<void()> resume) {
  {
    absl::MutexLock lock(&mutex_);
    pending_bytes_ += BytesOf(answer);
    pending_.push_back(std::move(answer));
    if (pending_bytes_ > max_pending_bytes_) {
      held_.push_back(std::move(resume));
      return;
    }
  }
  resume();
}

bool Verifier::HasTurn() const {
  if (is_stopping_) return true;
  return !pending_.empty() && (is_finishing_ || pending_bytes_ > max_pending_bytes_);
}

std::vector<std::function<void()>> Verifier::TakeResumes() {
  if (pending_bytes_ > max_pending_bytes_) return {};
  return std::exchange(held_, {});
}

void Verifier::Count(const Answer& answer, const CheckedAnswer& checked) {
  absl::MutexLock lock(&mutex_);
  ++result_.num_checked;
  result_.rows_checked += checked.rows_checked;
  if (checked.status.ok()) return;
  ++result_.num_mismatches;
  if (result_.mismatches.size() >= kMaxMessages) return;
  result_.mismatches.push_back(
      absl::StrCat(checked.status.message(), "; ", Describe(answer.request)));
}

void Verifier::RunChecks() {
  for (;;) {
    Answer answer;
    {
      absl::MutexLock lock(&mutex_);
      mutex_.Await(absl::Condition(this, &Verifier::HasTurn));
      if (is_stopping_) return;
      answer = std::move(pending_.front());
      pending_.pop_front();
      ++num_checking_;
    }
    Count(answer, CheckAnswer(pool_, answer.request, answer.output));
    std::vector<std::function<void()>> resumes;
    {
      absl::MutexLock lock(&mutex_);
      pending_bytes_ -= BytesOf(answer);
      --num_checking_;
      resumes = TakeResumes();
    }
    for (const auto& resume : resumes) resume();
  }
}

VerifyResult Verifier::Finish(const std::function<bool(std::int64_t)>& poll) {
  {
    absl::MutexLock lock(&mutex_);
    is_finishing_ = true;
  }
  const auto is_done = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return pending_.empty() && num_checking_ == 0;
  };
  for (;;) {
    std::int64_t left = 0;
    {
      absl::MutexLock lock(&mutex_);
      if (mutex_.AwaitWithTimeout(absl::Condition(&is_done), kPollInterval)) return result_;
      left = static_cast<std::int64_t>(pending_.size()) + num_checking_;
    }
    if (!poll(left)) continue;
    absl::MutexLock lock(&mutex_);
    result_.num_unchecked += static_cast<std::int64_t>(pending_.size());
    pending_.clear();
  }
}

}  // namespace attention::loadgen
