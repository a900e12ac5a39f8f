#include "server/rpc/completion_threads.h"

#include <grpc/support/log.h>

#include <chrono>
#include <string>
#include <utility>

#include "server/base/contain_exceptions.h"

namespace attention::server {
namespace {

// The number of small requests that fill a batch.
constexpr int kMaxEventsInARow = 32;

// An event that takes longer has copied some 256 KiB of tensors. To be answered with others would
// gain such a request little, and its client could not use the time until they have been copied,
// too: waiting for four of 1 MiB cost a third of their throughput.
constexpr std::chrono::microseconds kLongEvent{50};

// The last barrier. Whoever throws here may have left a call without its answer, so events contain
// what they throw themselves; the process and its other calls go on in any case.
template <typename Work>
void RunContained(const Work& work) {
  const absl::Status status = ContainExceptions([&] {
    work();
    return absl::OkStatus();
  });
  if (!status.ok()) {
    gpr_log(GPR_ERROR, "an event was not handled: %s", std::string(status.message()).c_str());
  }
}

// Returns how long it took.
std::chrono::steady_clock::duration Handle(void* tag, bool ok) {
  const auto begin = std::chrono::steady_clock::now();
  RunContained([&] { static_cast<Event*>(tag)->OnEvent(ok); });
  return std::chrono::steady_clock::now() - begin;
}

}  // namespace

CompletionThreads::CompletionThreads(std::unique_ptr<grpc::ServerCompletionQueue> queue,
                                     int num_threads, std::function<void()> run_pending)
    : run_pending_(std::move(run_pending)), queue_(std::move(queue)) {
  for (int i = 0; i < num_threads; ++i) threads_.emplace_back([this] { Serve(); });
}

CompletionThreads::~CompletionThreads() {
  queue_->Shutdown();
  for (std::thread& thread : threads_) thread.join();
}

void CompletionThreads::Serve() {
  const gpr_timespec at_once = gpr_inf_past(GPR_CLOCK_MONOTONIC);
  void* tag = nullptr;
  bool ok = false;
  // True when an event was there without waiting, so that the next most likely is, too. To look in
  // vain before each computation costs a single caller 8 us of some 250.
  bool is_busy = false;
  int num_events = 0;  // since something was computed
  for (;;) {
    if (queue_->AsyncNext(&tag, &ok, at_once) == grpc::CompletionQueue::GOT_EVENT) {
      const bool is_long = Handle(tag, ok) >= kLongEvent;
      if (is_busy && !is_long && ++num_events < kMaxEventsInARow) continue;
      is_busy = true;
    } else {
      is_busy = false;
    }
    RunContained(run_pending_);
    num_events = 0;
    if (is_busy) continue;
    if (!queue_->Next(&tag, &ok)) return;
    Handle(tag, ok);
    RunContained(run_pending_);
  }
}

}  // namespace attention::server
