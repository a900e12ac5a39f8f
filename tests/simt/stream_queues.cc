#include "tests/simt/stream_queues.h"

#include <utility>

#include "kernels/base/check.h"

namespace attention::simt {

void StreamQueues::Enqueue(cuda::Stream stream, std::function<void()> work) {
  Of(stream).work.push_back({std::nullopt, std::move(work)});
  ++num_queued_;
  RunEager();
}

StreamQueues::Point StreamQueues::End(cuda::Stream stream) const {
  const Queue& queue = Of(stream);
  return {stream, queue.num_done + queue.work.size()};
}

void StreamQueues::Wait(cuda::Stream stream, Point point) {
  Of(stream).work.push_back({point, nullptr});
  ++num_queued_;
  RunEager();
}

void StreamQueues::Reach(Point point) {
  while (!IsReached(point)) {
    // The front waits for another stream, or can be done.
    const std::optional<Point> waits_for = Of(point.stream).work.front().waits_for;
    if (waits_for.has_value() && !IsReached(*waits_for)) {
      Reach(*waits_for);  // which lets eager streams go on
    } else {
      ATTENTION_CHECK(DoNext(point.stream));
    }
  }
  RunEager();
}

void StreamQueues::Drain() {
  for (int i = 0; i < cuda::kNumStreams; ++i) Reach(End(static_cast<cuda::Stream>(i)));
}

bool StreamQueues::DoNext(cuda::Stream stream) {
  Queue& queue = Of(stream);
  if (queue.work.empty()) return false;
  if (queue.work.front().waits_for.has_value() && !IsReached(*queue.work.front().waits_for)) {
    return false;
  }
  const Work work = std::move(queue.work.front());
  queue.work.pop_front();
  if (work.run) work.run();
  ++queue.num_done;
  --num_queued_;
  return true;
}

void StreamQueues::RunEager() {
  const EagerStreams eager = eager_.value_or(random_() & kAllEager);
  for (bool is_moving = true; is_moving;) {
    is_moving = false;
    for (int i = 0; i < cuda::kNumStreams; ++i) {
      while ((eager >> i & 1) != 0 && DoNext(static_cast<cuda::Stream>(i))) is_moving = true;
    }
  }
}

}  // namespace attention::simt
