#include <utility>
#include <vector>

#include "client/examples/smollm2_attention.h"
#include "kernels/registry.h"

namespace attention::examples {
namespace {

constexpr std::int64_t kPageSize = 64;  // the server's default

// Pages of one layer of one sequence.
struct Cache {
  std::vector<void*> pages;
  std::int64_t length = 0;

  PagedKvView view() const {
    return {pages.data(), static_cast<std::int64_t>(pages.size()), kPageSize};
  }
};

class LocalAttention final : public ModelAttention {
 public:
  LocalAttention(const AttentionShape& shape, int num_sequences,
                 std::unique_ptr<AttentionBackend> backend)
      : backend_(std::move(backend)), num_layers_(shape.num_layers) {
    params_.num_q_heads = shape.num_q_heads;
    params_.num_kv_heads = shape.num_kv_heads;
    params_.head_dim_qk = params_.head_dim_v = shape.head_dim;
    params_.softmax_scale = DefaultSoftmaxScale(shape.head_dim);
    params_.is_causal = true;
    layout_ = backend_->PageLayout(params_.kv_geometry(), kPageSize);
    caches_.resize(static_cast<std::size_t>(num_sequences) * shape.num_layers);
  }
  LocalAttention(const LocalAttention&) = delete;
  LocalAttention& operator=(const LocalAttention&) = delete;

  ~LocalAttention() override {
    for (const Cache& cache : caches_) {
      for (void* page : cache.pages) backend_->memory().Free(page, layout_.page_bytes);
    }
  }

  absl::Status Attend(std::span<const SequenceRows> sequences, int layer, const LayerRows& rows,
                      float* output) override {
    std::vector<KvAppendTask> appends;
    std::vector<AttentionTask> tasks;
    std::int64_t begin_row = 0;
    for (const auto& [sequence, num_rows] : sequences) {
      Cache& cache = caches_[static_cast<std::size_t>(sequence) * num_layers_ + layer];
      const absl::Status status = Reserve(cache, cache.length + num_rows);
      if (!status.ok()) return status;
      appends.push_back({.geometry = params_.kv_geometry(),
                         .destination = cache.view(),
                         .position = cache.length,
                         .num_tokens = num_rows,
                         .k = Rows(rows.k, begin_row, params_.num_kv_heads),
                         .v = Rows(rows.v, begin_row, params_.num_kv_heads)});
      cache.length += num_rows;
      AttentionTask& task = tasks.emplace_back();
      task.params = params_;
      task.q_len = num_rows;
      task.kv_len = cache.length;
      task.first_query_position = cache.length - num_rows;
      task.q = Rows(rows.q, begin_row, params_.num_q_heads);
      task.kv_pages = cache.view();
      const std::int64_t row_elements = std::int64_t{params_.num_q_heads} * params_.head_dim_v;
      task.o = DenseRows(output + begin_row * row_elements, DType::kFloat32, params_.num_q_heads,
                         params_.head_dim_v);
      begin_row += num_rows;
    }
    const absl::Status appended = backend_->AppendKv(appends);
    if (!appended.ok()) return appended;
    const auto plan = backend_->Plan(tasks);
    return plan.ok() ? backend_->Run(**plan) : plan.status();
  }

 private:
  RowsView Rows(const float* data, std::int64_t begin_row, int num_heads) const {
    return DenseRows(data + begin_row * num_heads * params_.head_dim_qk, DType::kFloat32, num_heads,
                     params_.head_dim_qk);
  }

  absl::Status Reserve(Cache& cache, std::int64_t length) {
    while (static_cast<std::int64_t>(cache.pages.size()) * kPageSize < length) {
      void* page = backend_->memory().Allocate(layout_.page_bytes);
      if (page == nullptr) return absl::ResourceExhaustedError("no memory for another KV page");
      cache.pages.push_back(page);
    }
    return absl::OkStatus();
  }

  std::unique_ptr<AttentionBackend> backend_;
  AttentionParams params_;
  KvPageLayout layout_;
  const int num_layers_;
  std::vector<Cache> caches_;  // [num_sequences, num_layers]
};

}  // namespace

absl::StatusOr<std::unique_ptr<ModelAttention>> MakeLocalAttention(const AttentionShape& shape,
                                                                   int num_sequences) {
  auto backend = MakeBackend("cpu", {});
  if (!backend.ok()) return backend.status();
  return std::make_unique<LocalAttention>(shape, num_sequences, *std::move(backend));
}

}  // namespace attention::examples
