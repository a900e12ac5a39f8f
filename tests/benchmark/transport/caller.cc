#include "tests/benchmark/transport/caller.h"

#include <ctime>
#include <utility>

namespace attention::bench {
namespace {

// The first exchanges are not counted: they open the stream and fault buffers in.
constexpr int kSkipped = 3;
constexpr std::size_t kMinRecorded = 5;

}  // namespace

double Now() {
  timespec time = {};
  clock_gettime(CLOCK_MONOTONIC, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

void Recorder::Add(double started, std::size_t bytes) {
  end_ = Now();
  if (num_skipped_ < kSkipped) {
    ++num_skipped_;
    begin_ = end_;
    return;
  }
  sample_.latencies.push_back(end_ - started);
  sample_.bytes += bytes;
}

bool Recorder::IsOver() const {
  return sample_.latencies.size() >= kMinRecorded && Now() >= deadline_;
}

Sample Recorder::Finish() {
  sample_.elapsed = end_ - begin_;
  return std::move(sample_);
}

}  // namespace attention::bench
