#include <memory>
#include <string>
#include <vector>

#include "kernels/base/divide.h"
#include "kernels/base/thread_pool.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/machine_ceilings.h"
#include "tests/benchmark/bench_case.h"
#include "tests/benchmark/peers/peers_c.h"

namespace attention::bench {
namespace {

constexpr std::int64_t kPageSize = 256;

std::string& LastError() {
  static auto* error = new std::string;
  return *error;
}

bool IsOk(const absl::Status& status) {
  if (!status.ok()) LastError() = status.ToString();
  return status.ok();
}

std::unique_ptr<AttentionBackend> MakeBackend(int num_threads) {
  auto backend = cpu::MakeCpuBackend({.num_threads = num_threads});
  return IsOk(backend.status()) ? *std::move(backend) : nullptr;
}

// A task without its tensors.
AttentionTask TaskOf(const PeersShape& shape, DType dtype) {
  AttentionTask task;
  AttentionParams& params = task.params;
  params.num_q_heads = static_cast<int>(shape.num_q_heads);
  params.num_kv_heads = static_cast<int>(shape.num_kv_heads);
  params.head_dim_qk = params.head_dim_v = static_cast<int>(shape.head_dim);
  params.dtype = params.kv_dtype = dtype;
  params.softmax_scale = DefaultSoftmaxScale(params.head_dim_qk);
  params.is_causal = shape.is_causal != 0;
  params.window_left = shape.window_left;
  task.q_len = shape.q_len;
  task.kv_len = shape.kv_len;
  task.first_query_position = shape.kv_len - shape.q_len;
  return task;
}

PeersShape ShapeOf(const CaseSpec& spec) {
  PeersShape shape = {.name = spec.name.c_str(),
                      .batch_size = spec.batch_size,
                      .num_q_heads = spec.num_q_heads,
                      .num_kv_heads = spec.num_kv_heads,
                      .q_len = spec.q_len,
                      .kv_len = spec.kv_len,
                      .head_dim = spec.head_dim,
                      .is_causal = spec.is_causal,
                      .window_left = spec.window_left,
                      .is_memory_bound = spec.bound == Bound::kMemory,
                      .flops = 0};
  const double one = EstimateWork(TaskOf(shape, DType::kFloat32)).flops;
  shape.flops = one * static_cast<double>(shape.batch_size);
  return shape;
}

class KernelsCase {
 public:
  KernelsCase(const PeersShape& shape, std::unique_ptr<AttentionBackend> backend)
      : shape_(shape), backend_(std::move(backend)) {}
  KernelsCase(const KernelsCase&) = delete;
  ~KernelsCase() {
    if (pages_ != nullptr) backend_->memory().Free(pages_, pages_bytes_);
  }

  bool Prepare(const PeersTensors& tensors, int num_copies) {
    steps_.resize(num_copies == 0 ? 1 : num_copies);
    for (auto& step : steps_) step = BatchOf(tensors);
    return num_copies == 0 || MoveToPages();
  }

  bool Run() {
    auto plan = backend_->Plan(steps_[next_step_++ % steps_.size()]);
    return IsOk(plan.status()) && IsOk(backend_->Run(**plan));
  }

 private:
  std::vector<AttentionTask> BatchOf(const PeersTensors& tensors) const {
    const DType dtype = tensors.is_bfloat16 != 0 ? DType::kBFloat16 : DType::kFloat32;
    const std::int64_t row_bytes = shape_.head_dim * static_cast<std::int64_t>(DTypeBytes(dtype));
    const std::int64_t q_bytes = shape_.q_len * shape_.num_q_heads * row_bytes;
    const std::int64_t kv_bytes = shape_.kv_len * shape_.num_kv_heads * row_bytes;
    const auto rows = [&](auto* data, std::int64_t heads) {
      return DenseRows(data, dtype, heads, shape_.head_dim);
    };
    std::vector<AttentionTask> batch(shape_.batch_size, TaskOf(shape_, dtype));
    for (std::int64_t i = 0; i < shape_.batch_size; ++i) {
      const auto* q = static_cast<const char*>(tensors.q) + i * q_bytes;
      const auto* k = static_cast<const char*>(tensors.k) + i * kv_bytes;
      const auto* v = static_cast<const char*>(tensors.v) + i * kv_bytes;
      batch[i].q = rows(q, shape_.num_q_heads);
      batch[i].k = rows(k, shape_.num_kv_heads);
      batch[i].v = rows(v, shape_.num_kv_heads);
      batch[i].o = rows(static_cast<char*>(tensors.o) + i * q_bytes, shape_.num_q_heads);
    }
    return batch;
  }

  // Gives every task pages of its own that hold its keys and values.
  bool MoveToPages() {
    const KvGeometry geometry = steps_[0][0].params.kv_geometry();
    const std::size_t page_bytes = backend_->PageLayout(geometry, kPageSize).page_bytes;
    const std::int64_t num_pages = CeilDiv(shape_.kv_len, kPageSize);
    pages_bytes_ = steps_.size() * steps_[0].size() * num_pages * page_bytes;
    pages_ = backend_->memory().Allocate(pages_bytes_);
    if (pages_ == nullptr) return IsOk(absl::ResourceExhaustedError("no memory for pages"));
    auto* page = static_cast<char*>(pages_);
    tables_.reserve(steps_.size() * steps_[0].size());
    for (auto& step : steps_) {
      for (AttentionTask& task : step) {
        auto& table = tables_.emplace_back();
        for (std::int64_t i = 0; i < num_pages; ++i, page += page_bytes) table.push_back(page);
        task.kv_pages = {table.data(), num_pages, kPageSize};
        const KvAppendTask append{.geometry = geometry,
                                  .destination = task.kv_pages,
                                  .position = 0,
                                  .num_tokens = shape_.kv_len,
                                  .k = task.k,
                                  .v = task.v};
        if (!IsOk(backend_->AppendKv({&append, 1}))) return false;
      }
    }
    return true;
  }

  PeersShape shape_;
  std::unique_ptr<AttentionBackend> backend_;
  std::vector<std::vector<AttentionTask>> steps_;  // [copy][batch]
  std::vector<std::vector<void*>> tables_;         // [copy * batch][page]
  void* pages_ = nullptr;
  std::size_t pages_bytes_ = 0;
  std::size_t next_step_ = 0;
};

}  // namespace

void SetPeersError(const char* message) { LastError() = message; }

}  // namespace attention::bench

using attention::bench::KernelsCase;

const char* PeersError() { return attention::bench::LastError().c_str(); }

int PeersNumShapes() { return static_cast<int>(attention::bench::AllCases().size()); }

int PeersGetShape(int index, PeersShape* shape) {
  if (index < 0 || index >= PeersNumShapes()) {
    attention::bench::SetPeersError("no such shape");
    return -1;
  }
  *shape = attention::bench::ShapeOf(attention::bench::AllCases()[index]);
  return 0;
}

int PeersMeasureCeilings(int num_threads, PeersCeilings* ceilings) {
  // Kept, so that the caller sees how long its threads waited for a core. A backend would measure
  // only once.
  static auto* pool = new std::unique_ptr<attention::ThreadPool>;
  const attention::cpu::KernelTable* kernels = attention::cpu::ChooseKernels();
  if (kernels == nullptr) {
    attention::bench::SetPeersError("no kernels for this processor");
    return -1;
  }
  if (*pool == nullptr || (*pool)->num_threads() != num_threads) {
    *pool = std::make_unique<attention::ThreadPool>(num_threads);
  }
  const attention::DeviceCeilings measured = attention::cpu::MeasureCeilings(*kernels, **pool);
  *ceilings = {measured.flops_per_second, measured.bf16_flops_per_second,
               measured.bytes_per_second};
  return 0;
}

const char* PeersDevice() {
  static auto* text = new std::string;
  const auto backend = attention::bench::MakeBackend(1);
  if (backend == nullptr) return nullptr;
  *text = backend->info().device + ", " + backend->info().isa;
  return text->c_str();
}

void* PeersKernelsCreate(const PeersShape* shape, const PeersTensors* tensors, int num_copies,
                         int num_threads) {
  auto backend = attention::bench::MakeBackend(num_threads);
  if (backend == nullptr) return nullptr;
  auto created = std::make_unique<KernelsCase>(*shape, std::move(backend));
  return created->Prepare(*tensors, num_copies) ? created.release() : nullptr;
}

int PeersKernelsRun(void* kernels_case) {
  return static_cast<KernelsCase*>(kernels_case)->Run() ? 0 : -1;
}

void PeersKernelsDestroy(void* kernels_case) { delete static_cast<KernelsCase*>(kernels_case); }
