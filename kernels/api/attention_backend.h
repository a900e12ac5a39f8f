// The interface of every device: describe itself (backend_description.h), plan, run. The server
// picks the first registered backend whose Supports answers OK; every refusal carries a reason that
// is logged and returned.
//
// Batch invariance: the bits of a task's results depend on that task alone. Not on its neighbours,
// the number of threads, the page size, the page order, or on how a prompt was cut into tasks.
//
// Thread-safety: a backend is owned by one worker thread; only its description and projections()
// may be called from others.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstring>
#include <memory>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/api/attention_params.h"
#include "kernels/api/backend_description.h"
#include "kernels/api/paged_kv_view.h"
#include "kernels/api/projection.h"
#include "kernels/api/stored_rows.h"
#include "kernels/api/work_estimate.h"

namespace attention {

// A device that is there, or might be, and why no backend uses it.
struct UnusedDevice {
  std::string backend;  // that could use it
  std::string device;   // model name; empty when it cannot be told
  std::string reason;
};

// Allocates the bytes of KV pages where the backend can read them.
class MemoryAllocator {
 public:
  virtual ~MemoryAllocator() = default;
  // 64-byte aligned or more; null when out of memory. Contents are unspecified.
  virtual void* Allocate(std::size_t bytes) = 0;
  virtual void Free(void* memory, std::size_t bytes) = 0;
  // Fills what was allocated, or a part of it, with zeros.
  virtual void Zero(void* memory, std::size_t bytes) { std::memset(memory, 0, bytes); }
  // True if memory keeps its contents when the backend it came from is gone, and may be freed
  // through that of another backend of the same device. A processor's does; a GPU's is gone with
  // its context.
  virtual bool outlives_backend() const { return true; }
  // Bytes that could be allocated now, which nothing else uses; 0: not known.
  virtual std::size_t free_bytes() const { return 0; }
};

// A run has come to its end, or has stopped on the way to be continued.
enum class RunState { kDone, kYielded };

// Estimated arithmetic (work_estimate.h) of a plan. `flops_done` grows from one Run of a yielding
// plan to the next and equals `flops` when Run answers kDone. Packing and the second pass for
// column sums count nothing, as in the estimate.
struct PlanProgress {
  double flops = 0;
  double flops_done = 0;
};

// A KV page, and as many bytes of the host's memory.
struct PageCopy {
  void* page = nullptr;  // of memory()
  void* host = nullptr;  // of host_memory()
  std::size_t bytes = 0;
};

// A KV page, and another one of as many bytes.
struct DevicePageCopy {
  const void* from = nullptr;
  void* to = nullptr;
  std::size_t bytes = 0;
};

// A decision of Plan, opaque to callers. It keeps the tasks it was made from: their pointers must
// stay valid until Run has answered kDone or an error, or the plan is destroyed.
class AttentionPlan {
 public:
  virtual ~AttentionPlan() = default;
  // To be asked between runs, by the thread that calls Run.
  virtual PlanProgress progress() const = 0;
};

class AttentionBackend : public BackendDescription {
 public:
  // For KV pages. The host must not touch what a device alone can read and write.
  virtual MemoryAllocator& memory() = 0;
  // For tensors of tasks: the host's memory, from which and to which the backend copies fastest.
  virtual MemoryAllocator& host_memory() { return memory(); }

  // Measured once, on the first call, in about 0.3 s.
  virtual const DeviceCeilings& Ceilings() = 0;

  // Checks and copies the tasks. INVALID_ARGUMENT or UNIMPLEMENTED name the task and the field.
  virtual absl::StatusOr<std::unique_ptr<AttentionPlan>> Plan(
      std::span<const AttentionTask> tasks) = 0;

  // Computes every task of the plan and blocks until done. Tasks may differ in everything.
  //
  // `should_yield` may be null: never yields. It may be set by any thread at any time; each thread
  // of the backend then stops after its present unit of work, and Run answers kYielded unless all
  // is done. A run does at least one unit, so a flag that stays set delays but does not stall. The
  // same plan is given to Run again to go on where it stopped, with any flag; other plans, AppendKv
  // and RunWeights may run in between, but not on pages that the plan reads. Results are complete
  // only with kDone, and their bits do not depend on where a run yielded. A yielded plan may be
  // destroyed; what it has written of its results stays. After kDone or an error Run begins anew.
  virtual absl::StatusOr<RunState> Run(AttentionPlan& plan,
                                       const std::atomic<bool>* should_yield) = 0;

  // The same without yielding.
  absl::Status Run(AttentionPlan& plan) { return Run(plan, nullptr).status(); }

  // Writes keys and values into pages. Two tasks of one call must not share a page. It does not
  // yield: callers cut long appends by tokens, at positions that are multiples of kPageGranularity
  // for the best speed. INVALID_ARGUMENT names the task and the field; nothing is written then.
  virtual absl::Status AppendKv(std::span<const KvAppendTask> tasks) = 0;

  // Copies pages to the host, as they are after every append so far, and back. Blocks until done.
  virtual absl::Status SavePages(std::span<const PageCopy> copies) {
    for (const PageCopy& copy : copies) std::memcpy(copy.host, copy.page, copy.bytes);
    return absl::OkStatus();
  }
  virtual absl::Status RestorePages(std::span<const PageCopy> copies) {
    for (const PageCopy& copy : copies) std::memcpy(copy.page, copy.host, copy.bytes);
    return absl::OkStatus();
  }

  // Copies pages to others, as they are after every append so far. Blocks until done.
  virtual absl::Status CopyPages(std::span<const DevicePageCopy> copies) {
    for (const DevicePageCopy& copy : copies) std::memcpy(copy.to, copy.from, copy.bytes);
    return absl::OkStatus();
  }

  // Reads the rows of tokens as they are after every append so far, and writes rows into pages that
  // exist, as AppendKv would have stored them. Blocks until done. Two tasks of one call must not
  // write to one page, nor read what another one writes. INVALID_ARGUMENT names the task and the
  // field; UNIMPLEMENTED: the backend cannot.
  virtual absl::Status ReadRows(std::span<const StoredRowsTask> /*tasks*/) {
    return absl::UnimplementedError("the backend does not move stored rows");
  }
  virtual absl::Status WriteRows(std::span<const StoredRowsTask> /*tasks*/) {
    return absl::UnimplementedError("the backend does not move stored rows");
  }
  // Moves tokens within the device, each task one head's. The same holds; tasks of several heads
  // may have the same pages.
  virtual absl::Status MoveTokens(std::span<const MoveTokensTask> /*tasks*/) {
    return absl::UnimplementedError("the backend does not move stored rows");
  }

  // Computes rows of attention weights.
  virtual absl::Status RunWeights(const WeightsTask& task) = 0;

  // Gives the device up before another backend is made in this one's place: from now on nothing is
  // computed, and memory that does not outlive the backend is gone, whether it is freed or not.
  virtual void Abandon() {}

  // Projections on the same device; null: not offered.
  virtual ProjectionBackend* projections() { return nullptr; }
};

}  // namespace attention
