// A thread that works on several tasks in turns, a little of each, so that a small one does not
// wait for a large one: pages of shared memory are taken and given back by it.
//
// Thread-safety: all methods.
#pragma once

#include <functional>
#include <memory>
#include <thread>

namespace attention::server {

class TurnWorker {
 public:
  // Works on a task for a turn; true when that was the last.
  using Task = std::function<bool()>;

  // The place where tasks are put. It may outlive the worker: then the caller that adds a task
  // works on it itself.
  class Queue;

  TurnWorker();
  // Completes what there is.
  ~TurnWorker();
  TurnWorker(const TurnWorker&) = delete;
  TurnWorker& operator=(const TurnWorker&) = delete;

  const std::shared_ptr<Queue>& queue() const { return queue_; }

 private:
  const std::shared_ptr<Queue> queue_;
  std::thread thread_;
};

// Has the task worked on, in turns with others and in order with none.
void AddTask(TurnWorker::Queue& queue, TurnWorker::Task task);

}  // namespace attention::server
