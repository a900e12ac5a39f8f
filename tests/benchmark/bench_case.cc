#include "tests/benchmark/bench_case.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <random>

#include "kernels/base/divide.h"

namespace attention::bench {
namespace {

constexpr std::int64_t kPageSize = 256;
// Twice the last-level cache of the largest processors seen (260 MiB).
constexpr double kColdBytes = 536e6;

void Check(const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  std::exit(1);
}

void FillRandom(DType dtype, std::int64_t count, BenchCase::Bytes* out) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  out->Resize(count * DTypeBytes(dtype));
  for (std::int64_t i = 0; i < count; ++i) StoreElement(out->data(), dtype, i, normal(random));
}

}  // namespace

const std::vector<CaseSpec>& AllCases() {
  static const auto* cases = new std::vector<CaseSpec>{
      {"P1", 1, 32, 8, 512, 512, 128, true},
      {"P2", 1, 32, 8, 2048, 2048, 128, true},
      {"P3", 1, 12, 12, 512, 512, 64, false},
      {"P4", 1, 16, 16, 1024, 1024, 64, false},
      {"P5", 1, 32, 8, 4096, 4096, 128, true, 511},
      {"D1", 1, 32, 8, 1, 4096, 128, true, -1, Bound::kMemory},
      {"D2", 16, 32, 8, 1, 2048, 128, true, -1, Bound::kMemory},
      {"D3", 64, 32, 8, 1, 512, 128, true, -1, Bound::kMemory},
      {"D4", 1, 32, 1, 1, 8192, 128, true, -1, Bound::kArithmetic},
      {"D5", 16, 32, 32, 1, 1024, 128, true, -1, Bound::kMemory},
      {"S1", 256, 8, 8, 64, 64, 64, false},
      {"S2", 1, 8, 8, 1024, 1024, 64, false},
  };
  return *cases;
}

const std::vector<CaseSpec>& WideCases() {
  static const auto* cases = new std::vector<CaseSpec>{
      {"P256", 1, 8, 2, 2048, 2048, 256, true},
      {"P512", 1, 8, 2, 2048, 2048, 512, true},
      {.name = "P576",
       .batch_size = 1,
       .num_q_heads = 8,
       .num_kv_heads = 2,
       .q_len = 2048,
       .kv_len = 2048,
       .head_dim = 576,
       .is_causal = true,
       .head_dim_v = 512},
      {"W256", 8, 16, 4, 1, 4096, 256, true, -1, Bound::kMemory},
      {"W512", 8, 16, 4, 1, 4096, 512, true, -1, Bound::kMemory},
      {.name = "W576",
       .batch_size = 8,
       .num_q_heads = 16,
       .num_kv_heads = 4,
       .q_len = 1,
       .kv_len = 4096,
       .head_dim = 576,
       .is_causal = true,
       .bound = Bound::kMemory,
       .head_dim_v = 512},
      // Multi-head latent attention with absorbed projections.
      {.name = "L1",
       .batch_size = 8,
       .num_q_heads = 128,
       .num_kv_heads = 1,
       .q_len = 1,
       .kv_len = 4096,
       .head_dim = 576,
       .is_causal = true,
       .head_dim_v = 512,
       .is_latent = true},
  };
  return *cases;
}

BenchCase::BenchCase(const CaseSpec& spec, DType kv_dtype, AttentionBackend& backend)
    : spec_(spec),
      kv_dtype_(kv_dtype),
      dtype_(HasRowScales(kv_dtype) ? DType::kBFloat16 : kv_dtype),
      backend_(backend) {
  AttentionTask task;
  MakeRows(&task);
  const WorkEstimate one = EstimateWork(task);
  work_ = {one.flops * spec.batch_size, one.kv_bytes * spec.batch_size,
           one.io_bytes * spec.batch_size};
  if (spec.is_decode()) {
    MakePages(task);
  } else {
    MakeBatch(task);
  }
}

BenchCase::~BenchCase() {
  if (pages_ != nullptr) backend_.memory().Free(pages_, pages_bytes_);
}

void BenchCase::MakeRows(AttentionTask* task) {
  AttentionParams& params = task->params;
  params.num_q_heads = spec_.num_q_heads;
  params.num_kv_heads = spec_.num_kv_heads;
  params.head_dim_qk = spec_.head_dim;
  params.head_dim_v = spec_.value_dim();
  params.value_is_key_prefix = spec_.is_latent;
  params.dtype = dtype_;
  params.kv_dtype = kv_dtype_;
  params.softmax_scale = DefaultSoftmaxScale(spec_.head_dim);
  params.is_causal = spec_.is_causal;
  params.window_left = spec_.window_left;
  const std::int64_t q_elements = spec_.q_len * spec_.num_q_heads * spec_.head_dim;
  const std::int64_t o_elements = spec_.q_len * spec_.num_q_heads * spec_.value_dim();
  const std::int64_t kv_rows = spec_.kv_len * spec_.num_kv_heads;
  const int copies = spec_.is_decode() ? 1 : spec_.batch_size;
  FillRandom(dtype_, q_elements * copies, &q_);
  FillRandom(dtype_, kv_rows * spec_.head_dim * copies, &k_);
  if (!spec_.is_latent) FillRandom(dtype_, kv_rows * spec_.value_dim() * copies, &v_);
  o_.Resize(o_elements * spec_.batch_size * DTypeBytes(dtype_));
  task->q_len = spec_.q_len;
  task->kv_len = spec_.kv_len;
  task->first_query_position = spec_.kv_len - spec_.q_len;
  const auto rows = [&](const Bytes& bytes, int heads, int dim) {
    return DenseRows(static_cast<const void*>(bytes.data()), dtype_, heads, dim);
  };
  task->q = rows(q_, spec_.num_q_heads, spec_.head_dim);
  task->k = rows(k_, spec_.num_kv_heads, spec_.head_dim);
  if (!spec_.is_latent) task->v = rows(v_, spec_.num_kv_heads, spec_.value_dim());
  task->o = DenseRows(static_cast<void*>(o_.data()), dtype_, spec_.num_q_heads, spec_.value_dim());
}

// Sequences that lie one after the other.
void BenchCase::MakeBatch(const AttentionTask& first) {
  std::vector<AttentionTask>& tasks = steps_.emplace_back(spec_.batch_size, first);
  for (int i = 0; i < spec_.batch_size; ++i) {
    tasks[i].q.data = q_.data() + i * (q_.size / spec_.batch_size);
    tasks[i].k.data = k_.data() + i * (k_.size / spec_.batch_size);
    tasks[i].v.data = v_.data() + i * (v_.size / spec_.batch_size);
    tasks[i].o.data = o_.data() + i * (o_.size / spec_.batch_size);
  }
}

void BenchCase::MakePages(const AttentionTask& rows) {
  const KvGeometry geometry = rows.params.kv_geometry();
  const std::size_t page_bytes = backend_.PageLayout(geometry, kPageSize).page_bytes;
  const std::int64_t num_pages = CeilDiv(spec_.kv_len, kPageSize);
  const int copies = std::max(1, static_cast<int>(kColdBytes / work_.kv_bytes + 0.5));
  const std::int64_t sequences = std::int64_t{copies} * spec_.batch_size;
  pages_bytes_ = sequences * num_pages * page_bytes;
  pages_ = backend_.memory().Allocate(pages_bytes_);
  if (pages_ == nullptr) Check(absl::ResourceExhaustedError("no memory for pages"));
  auto* page = static_cast<char*>(pages_);
  tables_.resize(sequences);
  for (std::int64_t sequence = 0; sequence < sequences; ++sequence) {
    for (std::int64_t i = 0; i < num_pages; ++i, page += page_bytes) {
      tables_[sequence].push_back(page);
    }
    AttentionTask task = rows;
    task.kv_pages = {tables_[sequence].data(), num_pages, kPageSize};
    const KvAppendTask append{.geometry = geometry,
                              .destination = task.kv_pages,
                              .position = 0,
                              .num_tokens = spec_.kv_len,
                              .k = rows.k,
                              .v = rows.v};
    Check(backend_.AppendKv({&append, 1}));
    if (sequence % spec_.batch_size == 0) steps_.emplace_back();
    task.o.data = o_.data() + sequence % spec_.batch_size * (o_.size / spec_.batch_size);
    steps_.back().push_back(task);
  }
}

void BenchCase::Run() {
  auto plan = backend_.Plan(steps_[next_step_++ % steps_.size()]);
  Check(plan.status());
  Check(backend_.Run(**plan));
}

}  // namespace attention::bench
