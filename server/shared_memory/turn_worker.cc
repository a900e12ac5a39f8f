#include "server/shared_memory/turn_worker.h"

#include <list>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/time/clock.h"
#include "server/base/contain_exceptions.h"
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
    for (std::list<Task> turn = Next(); !turn.empty(); turn = Next()) {
      bool is_done = false;
      // Memory that is out now may be there at the task's next turn.
      if (!TryRun([&] { is_done = turn.front()(); })) absl::SleepFor(absl::Milliseconds(1));
      if (is_done) continue;
      MutexLock lock(&mutex_);
      tasks_.splice(tasks_.end(), turn);
    }
  }

 private:
  // The first task; empty when there will be none.
  std::list<Task> Next() {
    MutexLock lock(&mutex_);
    changed_.Await(&mutex_, [this] { return !tasks_.empty() || is_stopping_; });
    std::list<Task> first;
    if (!tasks_.empty()) first.splice(first.end(), tasks_, tasks_.begin());
    return first;
  }

  Mutex mutex_;
  CondVar changed_;
  std::list<Task> tasks_ ABSL_GUARDED_BY(mutex_);
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
