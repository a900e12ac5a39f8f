#include "kernels/cuda/plan/plan_runner.h"

#include <algorithm>
#include <utility>

namespace attention::cuda {
namespace {

bool IsOverlapping(const CudaPlan& plan) { return plan.num_parts() > 1; }

// The part that a slice belongs to.
std::size_t PartOf(const CudaPlan& plan, std::size_t slice) {
  std::size_t part = 0;
  while (part + 1 < plan.num_parts() && plan.parts[part + 1].slices <= slice) ++part;
  return part;
}

}  // namespace

absl::StatusOr<RunState> PlanRunner::Advance(CudaPlan& plan,
                                             const std::atomic<bool>* should_yield) {
  if (plan.memory == nullptr) {
    if (absl::Status status = Begin(plan); !status.ok()) return status;
  }
  while (plan.next_slice < plan.slices.size()) {
    const std::size_t part = PartOf(plan, plan.next_slice);
    const std::size_t end_of_part = plan.parts[part + 1].slices;
    if (absl::Status status = UploadTo(plan, part); !status.ok()) return status;
    const std::size_t end = should_yield != nullptr ? plan.next_slice + 1 : end_of_part;
    if (absl::Status status = LaunchSlices(plan, end); !status.ok()) return status;
    if (plan.next_slice == end_of_part) {
      if (absl::Status status = Download(plan, part); !status.ok()) return status;
    }
    if (should_yield == nullptr || plan.next_slice == plan.slices.size()) continue;
    if (absl::Status status = AwaitLaunched(plan); !status.ok()) return status;
    if (should_yield->load(std::memory_order_relaxed)) return RunState::kYielded;
  }
  if (absl::Status status = Collect(plan); !status.ok()) return status;
  plan.flops_done = plan.flops;
  return RunState::kDone;
}

void PlanRunner::End(CudaPlan& plan, const absl::Status& status) {
  plan.next_slice = 0;
  if (plan.memory == nullptr) return;
  if (!status.ok()) device_.Synchronize().IgnoreError();
  plan.memory->is_in_flight = false;
  memories_.Retire(std::move(plan.memory));
}

absl::Status PlanRunner::Begin(CudaPlan& plan) {
  plan.flops_done = 0;
  plan.next_part = 0;
  auto leased = memories_.Lease();
  if (!leased.ok()) return leased.status();
  plan.memory = *std::move(leased);
  RunMemory& memory = *plan.memory;
  absl::Status status = memory.ReserveEvents(plan.num_parts());
  if (!status.ok() || plan.slices.empty()) return status;
  status = memory.Reserve(plan.upload_bytes, plan.scratch_bytes, plan.result_bytes);
  if (!status.ok()) return status;
  FillTables(plan, memory);
  memory.is_in_flight = true;
  return status;
}

// The next part travels meanwhile.
absl::Status PlanRunner::AwaitLaunched(CudaPlan& plan) {
  Event& done = *plan.memory->done;
  absl::Status status = device_.Record(done, Stream::kCompute);
  if (status.ok()) status = UploadTo(plan, PartOf(plan, plan.next_slice));
  return status.ok() ? device_.Await(done) : status;
}

absl::Status PlanRunner::UploadTo(CudaPlan& plan, std::size_t part) {
  while (plan.next_part <= part) {
    if (absl::Status status = UploadNext(plan); !status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status PlanRunner::UploadNext(CudaPlan& plan) {
  const std::size_t part = plan.next_part++;
  RunMemory& memory = *plan.memory;
  const std::vector<DirectCopy> direct = FillPart(plan, part, direct_bytes_, memory);
  if (!IsOverlapping(plan)) return CopyUpload(plan, 0, plan.upload_bytes, direct);
  if (part == 0) {
    absl::Status status = CopyUpload(plan, plan.tables, plan.upload_bytes, {});
    if (!status.ok()) return status;
  }
  absl::Status status =
      CopyUpload(plan, plan.parts[part].upload, plan.parts[part + 1].upload, direct);
  if (status.ok()) status = device_.Record(*memory.parts[part].uploaded, Stream::kUpload);
  return status.ok() ? device_.Wait(Stream::kCompute, *memory.parts[part].uploaded) : status;
}

// [begin, end) of the upload: `direct` from where it lies, what is between from the host's buffer.
absl::Status PlanRunner::CopyUpload(const CudaPlan& plan, std::size_t begin, std::size_t end,
                                    const std::vector<DirectCopy>& direct) {
  RunMemory& memory = *plan.memory;
  const Stream stream = IsOverlapping(plan) ? Stream::kUpload : Stream::kCompute;
  const auto copy_gathered = [&](std::size_t from, std::size_t to) {
    return from == to ? absl::OkStatus()
                      : device_.CopyToDevice(stream, memory.upload.data() + from,
                                             memory.host_upload.data() + from, to - from);
  };
  for (const DirectCopy& rows : direct) {
    absl::Status status = copy_gathered(begin, rows.offset);
    if (status.ok()) {
      status =
          device_.CopyToDevice(stream, memory.upload.data() + rows.offset, rows.host, rows.bytes);
    }
    if (!status.ok()) return status;
    begin = rows.offset + rows.bytes;
  }
  return copy_gathered(begin, end);
}

// Slices [next_slice, end); neighbours of one kernel become one launch.
absl::Status PlanRunner::LaunchSlices(CudaPlan& plan, std::size_t end) {
  while (plan.next_slice < end) {
    LaunchSlice slice = plan.slices[plan.next_slice++];
    while (plan.next_slice < end && plan.slices[plan.next_slice].kernel == slice.kernel) {
      const LaunchSlice& next = plan.slices[plan.next_slice++];
      slice.num_items += next.num_items;
      slice.flops += next.flops;
    }
    if (absl::Status status = LaunchOne(plan, slice); !status.ok()) return status;
    plan.flops_done = std::min(plan.flops, plan.flops_done + slice.flops);
  }
  return absl::OkStatus();
}

absl::Status PlanRunner::LaunchOne(const CudaPlan& plan, const LaunchSlice& slice) {
  char* upload = plan.memory->upload.data();
  const auto* tasks = reinterpret_cast<const DeviceTask*>(upload + plan.device_tasks);
  const auto blocks = static_cast<int>(slice.num_items);
  if (slice.kernel.family == KernelFamily::kAppend) {
    const auto* items = reinterpret_cast<const AppendItem*>(upload + plan.device_append_items);
    return device_.Launch(
        slice.kernel, blocks,
        AppendArguments{reinterpret_cast<const DeviceAppend*>(upload + plan.device_appends),
                        items + slice.first_item});
  }
  if (slice.kernel.family == KernelFamily::kProbe) {
    const auto* items = reinterpret_cast<const ProbeItem*>(upload + plan.device_probes);
    return device_.Launch(slice.kernel, blocks, ProbeArguments{tasks, items + slice.first_item});
  }
  char* scratch = plan.memory->scratch.data();
  const bool is_totals = slice.kernel.family == KernelFamily::kRowTotals;
  const auto* items = reinterpret_cast<const WorkItem*>(
      upload + (is_totals ? plan.device_totals : plan.device_items));
  auto* counters = reinterpret_cast<std::uint32_t*>(upload + plan.counters);
  AttendArguments arguments{tasks, items + slice.first_item,
                            reinterpret_cast<float*>(scratch + plan.partials), counters};
  if (!IsPersistent(slice.kernel)) return device_.Launch(slice.kernel, blocks, arguments);
  arguments.num_items = blocks;
  arguments.num_taken = counters + slice.num_taken;
  return device_.Launch(slice.kernel, std::min(blocks, device_.properties().num_multiprocessors),
                        arguments);
}

// Behind the launches of the part.
absl::Status PlanRunner::Download(const CudaPlan& plan, std::size_t part) {
  RunMemory& memory = *plan.memory;
  const PartEvents& events = memory.parts[part];
  std::size_t begin = plan.parts[part].results;
  const std::size_t end = IsOverlapping(plan) ? plan.parts[part + 1].results : plan.result_bytes;
  const Stream stream = IsOverlapping(plan) ? Stream::kDownload : Stream::kCompute;
  absl::Status status;
  if (IsOverlapping(plan)) {
    status = device_.Record(*events.computed, Stream::kCompute);
    if (status.ok()) status = device_.Wait(stream, *events.computed);
  }
  const auto copy = [&](char* host, std::size_t from, std::size_t to) {
    if (status.ok() && from < to) {
      status = device_.CopyToHost(stream, host, memory.results.data() + from, to - from);
    }
  };
  for (const DirectCopy& rows : DirectResults(plan, part, direct_bytes_, device_)) {
    copy(memory.host_results.data() + begin, begin, rows.offset);
    copy(rows.host, rows.offset, rows.offset + rows.bytes);
    begin = rows.offset + rows.bytes;
  }
  copy(memory.host_results.data() + begin, begin, end);
  return status.ok() ? device_.Record(*events.downloaded, stream) : status;
}

absl::Status PlanRunner::Collect(const CudaPlan& plan) {
  RunMemory& memory = *plan.memory;
  if (plan.slices.empty()) {
    absl::Status status = device_.Record(*memory.done, Stream::kCompute);
    if (status.ok()) status = device_.Await(*memory.done);
    if (!status.ok()) return status;
  }
  for (std::size_t part = 0; part < plan.num_parts(); ++part) {
    if (!plan.slices.empty()) {
      absl::Status status = device_.Await(*memory.parts[part].downloaded);
      if (!status.ok()) return status;
    }
    DeliverPart(plan, part, direct_bytes_, memory);
  }
  return absl::OkStatus();
}

}  // namespace attention::cuda
