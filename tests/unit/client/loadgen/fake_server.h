// A server in the process: computes attention with the float64 oracle, keeps sessions, and
// misbehaves on request. Thread-safe; callbacks run before the call returns, unless it is told to
// hold them.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "attention/client/mocks/mock_connection.h"
#include "client/loadgen/clock.h"

namespace attention::loadgen {

// Time that only moves when someone sleeps or advances it.
class FakeClock final : public Clock {
 public:
  absl::Duration Now() const override;
  void SleepUntil(absl::Duration time, const std::atomic<bool>& stop) override;
  void Advance(absl::Duration by);

 private:
  mutable absl::Mutex mutex_;
  // Not zero, as no real clock is.
  absl::Duration now_ ABSL_GUARDED_BY(mutex_) = absl::Seconds(1000);
};

// The calls that the load generator does not make are those of the mock, which expects none.
class FakeServer final : public client::MockConnection {
 public:
  // Called with the number (from 0) of each Attend or attending Step before it is answered; what is
  // not OK becomes the answer.
  std::function<absl::Status(std::int64_t)> on_request;
  // Adds this to the first element of answer number corrupted_answer.
  float corruption = 0;
  std::int64_t corrupted_answer = -1;
  // Skips the arithmetic; outputs are zero.
  bool is_computing = true;
  absl::Status ready_status;
  client::Timing timing{absl::Milliseconds(1), absl::Milliseconds(2), absl::Milliseconds(3), 4};

  // Keeps the answers of Attend back until Release; ReleaseHeld goes on keeping back new ones.
  void Hold();
  void Release();
  void ReleaseHeld();

  // The answer of CreateSession from now on.
  void SetCreateStatus(absl::Status status);
  // The same from the next but `count` on.
  void SetCreateStatusAfter(int count, absl::Status status);

  std::int64_t num_requests() const;
  int num_held() const;
  int max_held() const;
  int num_sessions() const;
  int num_created() const;
  std::int64_t session_rows(std::size_t session, int layer) const;
  // Streams that were opened, and the requests that came on them.
  int num_streams() const { return num_streams_; }
  int num_stream_requests() const { return num_stream_requests_; }
  std::vector<int> stream_targets() const;
  int num_created_on_streams() const { return num_created_on_streams_; }
  // The status of all that are open becomes UNAVAILABLE.
  void BreakStreams() { ++stream_epoch_; }

  void Attend(const client::AttendRequest& request, const client::CallOptions& options,
              client::Callback<client::AttendResult> done) override;
  void Step(const client::StepRequest& request, const client::CallOptions& options,
            client::Callback<client::StepResult> done) override;
  void CreateSession(const client::SessionOptions& request, const client::CallOptions& options,
                     client::Callback<client::SessionInfo> done) override;
  void DeleteSession(const client::SessionHandle& handle, const client::CallOptions& options,
                     client::StatusCallback done) override;
  void GetServerInfo(const client::CallOptions& options,
                     client::Callback<client::ServerInfo> done) override;
  absl::Status WaitUntilReady(absl::Time deadline) override;

  absl::StatusOr<std::unique_ptr<client::StepStream>> OpenStepStream(
      const client::StepStreamOptions&) override;

 private:
  class FakeStream;
  struct LayerKv {
    std::string k;
    std::string v;
    std::int64_t rows = 0;
  };
  struct FakeSession {
    client::SessionGeometry geometry;
    std::map<int, LayerKv> layers;
  };

  // The number of this request and what on_request says about it.
  absl::Status Begin(std::int64_t* number);
  client::SessionStepResult StepOne(const client::SessionStep& step);
  client::Tensor Compute(const client::TensorView& q, const client::TensorView& k,
                         const client::TensorView& v, const client::AttentionConfig& config,
                         std::int64_t number);

  std::atomic<int> num_streams_ = 0;
  std::atomic<int> num_stream_requests_ = 0;
  std::atomic<int> num_created_on_streams_ = 0;
  std::atomic<int> stream_epoch_ = 0;
  mutable absl::Mutex mutex_;
  std::int64_t num_requests_ ABSL_GUARDED_BY(mutex_) = 0;
  bool is_holding_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::function<void()>> held_ ABSL_GUARDED_BY(mutex_);
  absl::Status create_status_ ABSL_GUARDED_BY(mutex_);
  int max_held_ ABSL_GUARDED_BY(mutex_) = 0;
  std::vector<int> stream_targets_ ABSL_GUARDED_BY(mutex_);
  int creates_until_full_ ABSL_GUARDED_BY(mutex_) = -1;  // negative: never
  int num_created_ ABSL_GUARDED_BY(mutex_) = 0;
  std::map<std::string, FakeSession> sessions_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace attention::loadgen
