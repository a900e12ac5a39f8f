#include "server/rpc/completion_threads.h"

#include <utility>

namespace attention::server {

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
  // So many small requests fill a batch; and large ones, whose tensors are copied as they arrive,
  // must not keep the small waiting.
  constexpr int kMaxEventsInARow = 32;
  const gpr_timespec at_once = gpr_inf_past(GPR_CLOCK_MONOTONIC);
  void* tag = nullptr;
  bool ok = false;
  for (;;) {
    int num_events = 0;
    while (num_events < kMaxEventsInARow &&
           queue_->AsyncNext(&tag, &ok, at_once) == grpc::CompletionQueue::GOT_EVENT) {
      static_cast<Event*>(tag)->OnEvent(ok);
      ++num_events;
    }
    run_pending_();
    if (num_events == kMaxEventsInARow) continue;
    if (!queue_->Next(&tag, &ok)) return;
    static_cast<Event*>(tag)->OnEvent(ok);
  }
}

}  // namespace attention::server
