// The threads that serve all calls.
//
// These calls use completion queues, not gRPC's callback API: in gRPC 1.51 a callback runs on a
// thread of gRPC's own that is woken for it, which costs 20-30 us of the 100 us of a small call.
// Calls without tensors use them, too: callback threads would poll the same sockets and take
// messages from these.
#pragma once

#include <grpcpp/completion_queue.h>

#include <functional>
#include <memory>
#include <thread>
#include <vector>

namespace attention::server {

// The tag of an operation, which a completion queue hands back. Called once for each operation that
// was begun with it.
class Event {
 public:
  virtual ~Event() = default;
  // ok is false when the operation did not succeed: the peer has gone, or the server shuts down.
  virtual void OnEvent(bool ok) = 0;
};

// An event that calls a member function.
template <typename Owner, void (Owner::*kMethod)(bool ok)>
class EventOf final : public Event {
 public:
  explicit EventOf(Owner* owner) : owner_(owner) {}
  void OnEvent(bool ok) override { (owner_->*kMethod)(ok); }

 private:
  Owner* const owner_;
};

class CompletionThreads {
 public:
  // Serves `queue`, whose tags must all be Events. `run_pending` is called, by each of the threads,
  // before it waits for more events and after some number of them at the latest: for what events
  // put off so that several share it.
  CompletionThreads(std::unique_ptr<grpc::ServerCompletionQueue> queue, int num_threads,
                    std::function<void()> run_pending);
  // Serves what is left in the queue, then ends. The server must have been shut down.
  ~CompletionThreads();
  CompletionThreads(const CompletionThreads&) = delete;
  CompletionThreads& operator=(const CompletionThreads&) = delete;

  grpc::ServerCompletionQueue& queue() { return *queue_; }

 private:
  void Serve();

  const std::function<void()> run_pending_;
  std::unique_ptr<grpc::ServerCompletionQueue> queue_;
  std::vector<std::thread> threads_;
};

}  // namespace attention::server
