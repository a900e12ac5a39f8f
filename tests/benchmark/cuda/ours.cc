#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "absl/strings/str_join.h"
#include "kernels/base/divide.h"
#include "kernels/cuda/cuda_backend.h"
#include "tests/benchmark/cuda/contender.h"
#include "tests/benchmark/cuda/recording_device.h"

namespace attention::bench {
namespace {

// Inputs are resident: nothing has to travel in parts.
constexpr std::size_t kOnePart = std::numeric_limits<std::size_t>::max();

constexpr std::int64_t kPageSize = 64;  // of the server's sessions, unless told otherwise

class Ours final : public Contender {
 public:
  Ours(const CaseTensors& tensors, std::shared_ptr<cuda::Device> device)
      : tensors_(tensors),
        pages_(device->memory()),
        recorder_(std::make_shared<RecordingDevice>(std::move(device))),
        backend_(cuda::MakeCudaBackend(recorder_, {.part_bytes = kOnePart})) {}

  absl::Status Prepare() {
    if (absl::Status status = MakePages(); !status.ok()) return status;
    MakeTasks();
    auto plan = backend_->Plan(tasks_);
    if (!plan.ok()) return plan.status();
    plan_ = *std::move(plan);
    return Compute();
  }

  std::string name() const override { return kOurs; }
  std::string form() const override {
    std::vector<std::string> names;
    for (const AttentionTask& task : tasks_) {
      const std::string name = backend_->KernelName(task);
      if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
    }
    return absl::StrJoin(names, ", ");
  }

  absl::Status Rewind() override { return recorder_->Rewind(); }
  absl::Status Launch() override { return recorder_->Replay(); }

  // A whole run, with its copies, whose launches are recorded anew.
  absl::Status Compute() override {
    for (std::vector<char>& output : outputs_) std::fill(output.begin(), output.end(), '\xff');
    recorder_->Start();
    const absl::Status status = backend_->Run(*plan_);
    recorder_->Stop();
    return status;
  }

  absl::Status ReadRow(const RowRef& ref, std::vector<float>* row) override {
    const Part& part = tensors_[ref.part]->part();
    const std::int64_t index =
        ((ref.sequence * part.q_len + ref.query) * part.num_q_heads + ref.head) * part.head_dim;
    for (std::size_t i = 0; i < row->size(); ++i) {
      (*row)[i] =
          LoadElement(outputs_[ref.part].data(), part.dtype, index + static_cast<std::int64_t>(i));
    }
    return absl::OkStatus();
  }

 private:
  // Pages of a part: those that all sequences share, then each one's own.
  struct PartPages {
    std::int64_t shared = 0, own = 0;
    std::size_t page_bytes = 0;

    std::int64_t count(int batch_size) const { return shared + batch_size * own; }
  };

  PartPages PagesOf(const Part& part) const {
    PartPages pages;
    pages.shared = part.shared_len / kPageSize;
    pages.own = CeilDiv(part.kv_len, kPageSize) - pages.shared;
    pages.page_bytes = backend_->PageLayout(part.params().kv_geometry(), kPageSize).page_bytes;
    return pages;
  }

  absl::Status MakePages() {
    std::size_t bytes = 0;
    for (const auto& tensors : tensors_) {
      const PartPages pages = PagesOf(tensors->part());
      bytes += pages.count(tensors->part().batch_size) * pages.page_bytes;
    }
    if (absl::Status status = pages_.Reserve(bytes); !status.ok()) return status;
    char* place = pages_.data();
    for (const auto& tensors : tensors_) {
      const PartPages pages = PagesOf(tensors->part());
      for (int sequence = 0; sequence < tensors->part().batch_size; ++sequence) {
        std::vector<void*>& table = tables_.emplace_back();
        for (std::int64_t i = 0; i < pages.shared + pages.own; ++i) {
          const std::int64_t page = i < pages.shared ? i : i + sequence * pages.own;
          table.push_back(place + page * pages.page_bytes);
        }
        if (absl::Status status = Append(*tensors, sequence, table); !status.ok()) return status;
      }
      place += pages.count(tensors->part().batch_size) * pages.page_bytes;
    }
    return absl::OkStatus();
  }

  // Shared pages come with the first sequence.
  absl::Status Append(const PartTensors& tensors, int sequence, std::vector<void*>& table) {
    const Part& part = tensors.part();
    for (const auto& [begin, end] :
         {std::pair{std::int64_t{0}, part.shared_len}, {part.shared_len, part.kv_len}}) {
      if (begin == end || (end == part.shared_len && sequence > 0)) continue;
      const KvAppendTask append{
          .geometry = part.params().kv_geometry(),
          .destination = {table.data(), static_cast<std::int64_t>(table.size()), kPageSize},
          .position = begin,
          .num_tokens = end - begin,
          .k = tensors.Keys(sequence, begin),
          .v = tensors.Values(sequence, begin)};
      if (absl::Status status = backend_->AppendKv({&append, 1}); !status.ok()) return status;
    }
    return absl::OkStatus();
  }

  void MakeTasks() {
    std::size_t table = 0;
    for (const auto& tensors : tensors_) {
      const Part& part = tensors->part();
      std::vector<char>& output = outputs_.emplace_back(part.batch_size * tensors->query_bytes());
      for (int sequence = 0; sequence < part.batch_size; ++sequence, ++table) {
        AttentionTask task = part.Task();
        task.q = DenseRows(static_cast<const void*>(tensors->Query(sequence)), part.dtype,
                           part.num_q_heads, part.head_dim);
        task.o = DenseRows(static_cast<void*>(output.data() + sequence * tensors->query_bytes()),
                           part.dtype, part.num_q_heads, part.head_dim);
        task.kv_pages = {tables_[table].data(), static_cast<std::int64_t>(tables_[table].size()),
                         kPageSize};
        tasks_.push_back(task);
      }
    }
  }

  const CaseTensors& tensors_;
  cuda::GrowingBuffer pages_;
  std::shared_ptr<RecordingDevice> recorder_;
  std::unique_ptr<AttentionBackend> backend_;
  std::vector<std::vector<void*>> tables_;  // of each sequence of each part
  std::vector<std::vector<char>> outputs_;  // of each part
  std::vector<AttentionTask> tasks_;
  std::unique_ptr<AttentionPlan> plan_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Contender>> MakeOurs(const Case& bench_case,
                                                    const CaseTensors& tensors,
                                                    std::shared_ptr<cuda::Device> device) {
  for (const Part& part : bench_case.parts) {
    if (part.shared_len % kPageSize != 0) {
      return absl::InvalidArgumentError("shared_len must fill pages");
    }
  }
  auto ours = std::make_unique<Ours>(tensors, std::move(device));
  if (absl::Status status = ours->Prepare(); !status.ok()) return status;
  return ours;
}

}  // namespace attention::bench
