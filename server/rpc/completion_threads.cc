#include "server/rpc/completion_threads.h"

#include <utility>

namespace attention::server {

CompletionThreads::CompletionThreads(std::unique_ptr<grpc::ServerCompletionQueue> queue,
                                     int num_threads)
    : queue_(std::move(queue)) {
  for (int i = 0; i < num_threads; ++i) threads_.emplace_back([this] { Serve(); });
}

CompletionThreads::~CompletionThreads() {
  queue_->Shutdown();
  for (std::thread& thread : threads_) thread.join();
}

void CompletionThreads::Serve() {
  void* tag = nullptr;
  bool ok = false;
  while (queue_->Next(&tag, &ok)) static_cast<Event*>(tag)->OnEvent(ok);
}

}  // namespace attention::server
