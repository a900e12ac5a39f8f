#include "kernels/cpu/cpu_projections.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/base/divide.h"
#include "kernels/cpu/block_matmul.h"
#include "kernels/cpu/weight_memory.h"

namespace attention::cpu {
namespace {

// Columns of y that one thread computes at a time: enough that the rows it converts are used well,
// few enough that a decode step of a small model keeps several cores busy. Depends on the shape
// alone, as the bits may depend on it.
constexpr std::int64_t kMaxBlockColumns = 256;
constexpr std::int64_t kColumnGranularity = 16;

std::int64_t BlockColumns(std::int64_t out_features) {
  const std::int64_t blocks = CeilDiv(out_features, kMaxBlockColumns);
  return RoundUp(CeilDiv(out_features, blocks), kColumnGranularity);
}

void CopyToFloat(const void* from, DType dtype, std::int64_t begin, std::int64_t count, float* to) {
  if (dtype == DType::kFloat32) {
    std::memcpy(to, static_cast<const char*>(from) + begin * sizeof(float), count * sizeof(float));
    return;
  }
  for (std::int64_t i = 0; i < count; ++i) to[i] = LoadElement(from, dtype, begin + i);
}

void CopyFromFloat(const float* from, std::int64_t count, void* to, DType dtype,
                   std::int64_t begin) {
  if (dtype == DType::kFloat32) {
    std::memcpy(static_cast<char*>(to) + begin * sizeof(float), from, count * sizeof(float));
    return;
  }
  for (std::int64_t i = 0; i < count; ++i) StoreElement(to, dtype, begin + i, from[i]);
}

// Columns [begin, begin + matmul->out_features()).
struct ColumnBlock {
  std::int64_t begin = 0;
  std::shared_ptr<const BlockMatmul> matmul;
  dnnl::memory weights;
};

class PackedBlocks final : public PackedProjection {
 public:
  PackedBlocks(std::int64_t in_features, std::vector<ColumnBlock> blocks, WeightMemory memory,
               std::vector<float> bias)
      : in_features_(in_features),
        memory_(std::move(memory)),
        blocks_(std::move(blocks)),
        bias_(std::move(bias)) {}

  std::int64_t out_features() const override { return static_cast<std::int64_t>(bias_.size()); }
  std::int64_t in_features() const override { return in_features_; }
  std::size_t bytes() const override { return memory_.size() + bias_.size() * sizeof(float); }
  absl::Status Unpack(float* weights, float* bias) const override {
    for (const ColumnBlock& block : blocks_) {
      block.matmul->UnpackWeights(block.weights, weights + block.begin * in_features_);
    }
    std::copy(bias_.begin(), bias_.end(), bias);
    return absl::OkStatus();
  }

  const std::vector<ColumnBlock>& blocks() const { return blocks_; }
  const float* bias() const { return bias_.data(); }

 private:
  const std::int64_t in_features_;
  const WeightMemory memory_;  // of the blocks
  const std::vector<ColumnBlock> blocks_;
  const std::vector<float> bias_;
};

// The rows of all tasks of one projection, one after another.
struct RowBatch {
  const PackedBlocks* projection = nullptr;
  std::vector<const ProjectionTask*> tasks;
  std::vector<std::int64_t> begins;  // of each task's rows
  std::int64_t num_rows = 0;

  void Add(const ProjectionTask& task) {
    tasks.push_back(&task);
    begins.push_back(num_rows);
    num_rows += task.num_rows;
  }

  // Calls body(task, first row of the task, row of the batch, count) for what lies in [begin, end).
  template <typename Body>
  void ForEachPart(std::int64_t begin, std::int64_t end, const Body& body) const {
    auto index = static_cast<std::size_t>(std::upper_bound(begins.begin(), begins.end(), begin) -
                                          begins.begin() - 1);
    for (std::int64_t row = begin; row < end; ++index) {
      const std::int64_t first = row - begins[index];
      const std::int64_t count = std::min(end - row, tasks[index]->num_rows - first);
      if (count <= 0) continue;
      body(*tasks[index], first, row, count);
      row += count;
    }
  }
};

// A block of rows through a block of columns.
struct WorkItem {
  const RowBatch* batch = nullptr;
  const ColumnBlock* columns = nullptr;
  std::int64_t row = 0;
  std::int64_t count = 0;       // of rows
  std::int64_t block_rows = 0;  // with the zeros behind them
};

struct ThreadScratch {
  MatmulScratch matmul;
  AlignedBuffer<float> x;
  AlignedBuffer<float> y;
  AlignedBuffer<float> cos_sin;
  // The batch in x: items that follow each other read the same rows.
  const RowBatch* x_batch = nullptr;
  std::int64_t x_row = -1;
  std::int64_t x_rows = 0;
};

class CpuProjections final : public ProjectionBackend {
 public:
  explicit CpuProjections(ThreadPool& pool)
      : pool_(pool), scratch_(static_cast<std::size_t>(pool.num_threads())) {}

  absl::StatusOr<std::shared_ptr<const PackedProjection>> Pack(
      std::int64_t in_features, std::span<const ProjectionPart> parts) override {
    try {
      return PackBlocks(in_features, parts);
    } catch (const std::bad_alloc&) {
      return absl::ResourceExhaustedError("out of memory for the weights of a projection");
    } catch (const dnnl::error& error) {
      if (error.status == dnnl_out_of_memory) {
        return absl::ResourceExhaustedError("out of memory for the weights of a projection");
      }
      return absl::InternalError(absl::StrCat("oneDNN: ", error.what()));
    }
  }

  std::size_t PackedBytes(std::int64_t in_features, std::int64_t out_features) const override {
    // oneDNN's blocked layouts pad either side to at most 64.
    return static_cast<std::size_t>(RoundUp(in_features, std::int64_t{64}) *
                                        RoundUp(out_features, std::int64_t{64}) +
                                    out_features) *
               sizeof(float) +
           CeilDiv(out_features, std::int64_t{64}) * kCacheLineBytes;
  }

  absl::Status Project(std::span<const ProjectionTask> tasks) override {
    std::vector<RowBatch> batches = Gather(tasks);
    std::vector<WorkItem> items;
    for (const RowBatch& batch : batches) AddItems(batch, &items);
    for (ThreadScratch& scratch : scratch_) scratch.x_batch = nullptr;
    std::atomic<bool> has_failed{false};
    pool_.ParallelFor(static_cast<std::int64_t>(items.size()), [&](std::int64_t i, int thread) {
      try {
        RunItem(items[i], scratch_[thread]);
      } catch (const std::exception&) {
        has_failed.store(true, std::memory_order_relaxed);
      }
    });
    if (has_failed.load()) return absl::ResourceExhaustedError("out of memory in a projection");
    RotateAll(tasks);
    return absl::OkStatus();
  }

 private:
  absl::StatusOr<std::shared_ptr<const PackedProjection>> PackBlocks(
      std::int64_t in_features, std::span<const ProjectionPart> parts) {
    std::int64_t out_features = 0;
    for (const ProjectionPart& part : parts) out_features += part.out_features;
    std::vector<float> weights(static_cast<std::size_t>(out_features * in_features));
    std::vector<float> bias(static_cast<std::size_t>(out_features), 0.0f);
    std::int64_t row = 0;
    for (const ProjectionPart& part : parts) {
      CopyToFloat(part.weights, part.dtype, 0, part.out_features * in_features,
                  weights.data() + row * in_features);
      if (part.bias != nullptr) {
        CopyToFloat(part.bias, part.dtype, 0, part.out_features, bias.data() + row);
      }
      row += part.out_features;
    }
    std::vector<ColumnBlock> blocks;
    std::size_t bytes = 0;
    const std::int64_t width = BlockColumns(out_features);
    for (std::int64_t begin = 0; begin < out_features; begin += width) {
      blocks.push_back({begin, MatmulFor(in_features, std::min(width, out_features - begin)), {}});
      bytes += RoundUp(blocks.back().matmul->weights_bytes(), kCacheLineBytes);
    }
    WeightMemory memory(bytes);
    char* place = memory.data();
    for (ColumnBlock& block : blocks) {
      block.weights = block.matmul->PackWeights(weights.data() + block.begin * in_features, place);
      place += RoundUp(block.matmul->weights_bytes(), kCacheLineBytes);
    }
    return std::make_shared<PackedBlocks>(in_features, std::move(blocks), std::move(memory),
                                          std::move(bias));
  }

  // Layers of one shape share it. Two threads that meet a shape at once both make it, alike.
  std::shared_ptr<const BlockMatmul> MatmulFor(std::int64_t in_features,
                                               std::int64_t out_features) {
    const std::pair<std::int64_t, std::int64_t> shape(in_features, out_features);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (auto found = matmuls_[shape].lock()) return found;
    }
    auto made = std::make_shared<const BlockMatmul>(in_features, out_features);
    std::lock_guard<std::mutex> lock(mutex_);
    if (auto found = matmuls_[shape].lock()) return found;
    std::erase_if(matmuls_, [](const auto& entry) { return entry.second.expired(); });
    matmuls_[shape] = made;
    return made;
  }

  static std::vector<RowBatch> Gather(std::span<const ProjectionTask> tasks) {
    std::vector<RowBatch> batches;
    std::map<const PackedProjection*, std::size_t> index_of;
    for (const ProjectionTask& task : tasks) {
      if (task.num_rows == 0) continue;
      const auto [it, is_new] = index_of.emplace(task.projection, batches.size());
      if (is_new) {
        batches.emplace_back();
        batches.back().projection = static_cast<const PackedBlocks*>(task.projection);
      }
      batches[it->second].Add(task);
    }
    return batches;
  }

  // Row by row of blocks, so that a thread's next item mostly has the rows it holds. Block columns
  // of one projection may admit different sizes (the last one is narrower), so each is cut by
  // itself.
  static void AddItems(const RowBatch& batch, std::vector<WorkItem>* items) {
    const std::size_t first = items->size();
    for (const ColumnBlock& columns : batch.projection->blocks()) {
      for (std::int64_t row = 0; row < batch.num_rows;) {
        const std::int64_t rows = columns.matmul->RowsFor(batch.num_rows - row);
        const std::int64_t count = std::min(rows, batch.num_rows - row);
        items->push_back({&batch, &columns, row, count, rows});
        row += count;
      }
    }
    std::stable_sort(items->begin() + static_cast<std::ptrdiff_t>(first), items->end(),
                     [](const WorkItem& a, const WorkItem& b) { return a.row < b.row; });
  }

  static void LoadRows(const WorkItem& item, ThreadScratch& scratch) {
    if (scratch.x_batch == item.batch && scratch.x_row == item.row &&
        scratch.x_rows == item.block_rows) {
      return;
    }
    const std::int64_t width = item.batch->projection->in_features();
    float* x = scratch.x.Reserve(static_cast<std::size_t>(item.block_rows * width));
    item.batch->ForEachPart(
        item.row, item.row + item.count,
        [&](const ProjectionTask& task, std::int64_t first, std::int64_t row, std::int64_t count) {
          for (std::int64_t i = 0; i < count; ++i) {
            CopyToFloat(task.x, task.x_dtype, (first + i) * task.x_stride, width,
                        x + (row - item.row + i) * width);
          }
        });
    std::fill(x + item.count * width, x + item.block_rows * width, 0.0f);
    scratch.x_batch = item.batch;
    scratch.x_row = item.row;
    scratch.x_rows = item.block_rows;
  }

  static void RunItem(const WorkItem& item, ThreadScratch& scratch) {
    LoadRows(item, scratch);
    const BlockMatmul& matmul = *item.columns->matmul;
    const std::int64_t width = matmul.out_features();
    float* y = scratch.y.Reserve(static_cast<std::size_t>(item.block_rows * width));
    matmul.Run(item.block_rows, scratch.x.data(), item.columns->weights,
               item.batch->projection->bias() + item.columns->begin, y, scratch.matmul);
    item.batch->ForEachPart(
        item.row, item.row + item.count,
        [&](const ProjectionTask& task, std::int64_t first, std::int64_t row, std::int64_t count) {
          for (std::int64_t i = 0; i < count; ++i) {
            CopyFromFloat(y + (row - item.row + i) * width, width, task.y, task.y_dtype,
                          (first + i) * task.y_stride + item.columns->begin);
          }
        });
  }

  // When all columns are there: a head may lie in two blocks of them.
  void RotateAll(std::span<const ProjectionTask> tasks) {
    struct Row {
      const ProjectionTask* task;
      std::int64_t row;
    };
    constexpr std::int64_t kRows = 16;  // of a loop index
    std::vector<Row> rows;
    for (const ProjectionTask& task : tasks) {
      if (task.rotary == nullptr) continue;
      for (std::int64_t row = 0; row < task.num_rows; row += kRows) rows.push_back({&task, row});
      for (ThreadScratch& scratch : scratch_) {
        scratch.cos_sin.Reserve(static_cast<std::size_t>(task.rotary->params().dim));
      }
    }
    pool_.ParallelFor(static_cast<std::int64_t>(rows.size()), [&](std::int64_t i, int thread) {
      const ProjectionTask& task = *rows[i].task;
      const std::int64_t end = std::min(task.num_rows, rows[i].row + kRows);
      float* cos_sin = scratch_[thread].cos_sin.data();
      for (std::int64_t row = rows[i].row; row < end; ++row) {
        task.rotary->Turn(task.first_position + row, cos_sin);
        float* y = static_cast<float*>(task.y) + row * task.y_stride;
        for (int head = 0; head < task.num_rotary_heads; ++head) {
          task.rotary->Apply(cos_sin, y + head * task.rotary_head_dim);
        }
      }
    });
  }

  ThreadPool& pool_;
  std::vector<ThreadScratch> scratch_;
  std::mutex mutex_;
  std::map<std::pair<std::int64_t, std::int64_t>, std::weak_ptr<const BlockMatmul>> matmuls_;
};

}  // namespace

std::unique_ptr<ProjectionBackend> MakeCpuProjections(ThreadPool& pool) {
  return std::make_unique<CpuProjections>(pool);
}

}  // namespace attention::cpu
