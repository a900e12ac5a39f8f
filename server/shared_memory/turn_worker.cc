#include "server/shared_memory/turn_worker.h"

#include <deque>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "server/base/mutex.h"

namespace attention::server {

class TurnWorker::Queue {
 public:
  void Add(Task task) {
    {
      MutexLock lock(&mutex_);
      if (!is_stopping_) {
        tasks_.push_back(std::move(task));
        changed_.NotifyAll();
        return;
      }
    }
    while (!task()) continue;
  }

  void Stop() {
    MutexLock lock(&mutex_);
    is_stopping_ = true;
    changed_.NotifyAll();
  }

  // Until it is stopped and nothing is left.
  void Serve() {
    for (Task task = Next(); task != nullptr; task = Next()) {
      if (task()) continue;
      MutexLock lock(&mutex_);
      tasks_.push_back(std::move(task));
    }
  }

 private:
  Task Next() {
    MutexLock lock(&mutex_);
    changed_.Await(&mutex_, [this] { return !tasks_.empty() || is_stopping_; });
    if (tasks_.empty()) return nullptr;
    Task task = std::move(tasks_.front());
    tasks_.pop_front();
    return task;
  }

  Mutex mutex_;
  CondVar changed_;
  std::deque<Task> tasks_ ABSL_GUARDED_BY(mutex_);
  bool is_stopping_ ABSL_GUARDED_BY(mutex_) = false;
};

TurnWorker::TurnWorker()
    : queue_(std::make_shared<Queue>()), thread_([queue = queue_] { queue->Serve(); }) {}

TurnWorker::~TurnWorker() {
  queue_->Stop();
  thread_.join();
}

void AddTask(TurnWorker::Queue& queue, TurnWorker::Task task) { queue.Add(std::move(task)); }

}  // namespace attention::server
