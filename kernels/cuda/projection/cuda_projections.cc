#include "kernels/cuda/projection/cuda_projections.h"

#include <cstring>
#include <utility>

#include "kernels/cuda/plan/run_memory.h"
#include "kernels/cuda/projection/packed_matrix.h"
#include "kernels/cuda/projection/projection_plan.h"

namespace attention::cuda {
namespace {

// Rows of a piece, as the pass's operand wants them.
void GatherPiece(const ProjectionPass& pass, const PassPiece& piece, char* x) {
  const std::size_t element = DTypeBytes(pass.x_dtype);
  const std::size_t row_bytes = pass.matrix->in_features() * element;
  const std::size_t pitch = pass.x_row_elements() * element;
  const char* from =
      static_cast<const char*>(piece.task->x) + piece.first * piece.task->x_stride * element;
  char* to = x + piece.row * pitch;
  for (std::int64_t row = 0; row < piece.count; ++row, to += pitch) {
    std::memcpy(to, from + row * piece.task->x_stride * element, row_bytes);
    std::memset(to + row_bytes, 0, pitch - row_bytes);
  }
}

void DeliverPiece(const PassPiece& piece, const char* results) {
  const ProjectionTask& task = *piece.task;
  const std::size_t element = DTypeBytes(task.y_dtype);
  const std::size_t row_bytes = task.projection->out_features() * element;
  char* to = static_cast<char*>(task.y) + piece.first * task.y_stride * element;
  for (std::int64_t row = 0; row < piece.count; ++row) {
    std::memcpy(to + row * task.y_stride * element, results + piece.y + row * row_bytes, row_bytes);
  }
}

// Products come with the bias, but for parts: it is added to their sum.
bool HasFusedBias(const ProjectionPass& pass) {
  return pass.matrix->has_fused_bias() && pass.num_parts == 1;
}

DeviceSplit DescribeSplit(const ProjectionPass& pass, const RunMemory& memory) {
  DeviceSplit split;
  split.num_rows = pass.num_rows;
  split.in_features = pass.matrix->in_features();
  split.padded_in = pass.matrix->shape().padded_in();
  split.num_parts = pass.num_parts;
  split.x_dtype = pass.x_dtype;
  split.dtype = pass.matrix->shape().dtype;
  split.x = memory.upload.data() + pass.x;
  split.operand = memory.scratch.data() + pass.operand;
  split.unscale = reinterpret_cast<float*>(memory.scratch.data() + pass.unscale);
  return split;
}

DeviceFinish DescribeFinish(const ProjectionPass& pass, const PassPiece& piece,
                            const RunMemory& memory) {
  const ProjectionTask& task = *piece.task;
  DeviceFinish finish;
  finish.padded_out = pass.matrix->shape().padded_out();
  finish.out_features = pass.matrix->out_features();
  finish.num_parts = pass.num_parts;
  finish.part_stride = pass.num_rows * finish.padded_out;
  finish.product = reinterpret_cast<const float*>(memory.scratch.data() + pass.product) +
                   piece.row * finish.padded_out;
  if (!pass.is_direct()) {
    finish.unscale =
        reinterpret_cast<const float*>(memory.scratch.data() + pass.unscale) + piece.row;
  }
  if (!HasFusedBias(pass)) finish.bias = pass.matrix->bias();
  finish.y_dtype = task.y_dtype;
  finish.y = memory.results.data() + piece.y;
  if (task.rotary == nullptr) return finish;
  const RotaryParams& rotary = task.rotary->params();
  finish.frequencies = reinterpret_cast<const double*>(memory.upload.data() + piece.frequencies);
  finish.attention_factor = rotary.attention_factor;
  finish.num_pairs = rotary.dim / 2;
  finish.is_interleaved = rotary.is_interleaved ? 1 : 0;
  finish.num_heads = task.num_rotary_heads;
  finish.head_dim = task.rotary_head_dim;
  finish.first_position = task.first_position + piece.first;
  return finish;
}

void FillUpload(const ProjectionRound& round, RunMemory& memory) {
  char* host = memory.host_upload.data();
  auto* split = reinterpret_cast<DeviceSplit*>(host + round.device_splits);
  auto* finish = reinterpret_cast<DeviceFinish*>(host + round.device_finishes);
  for (const ProjectionPass& pass : round.passes) {
    if (!pass.is_direct()) new (split++) DeviceSplit(DescribeSplit(pass, memory));
    for (const PassPiece& piece : pass.pieces) {
      new (finish++) DeviceFinish(DescribeFinish(pass, piece, memory));
      GatherPiece(pass, piece, host + pass.x);
    }
  }
  for (const auto& [rotary, offset] : round.frequencies) {
    std::memcpy(host + offset, rotary->frequencies().data(),
                rotary->frequencies().size() * sizeof(double));
  }
  for (const auto& [items, offset] : {std::pair{&round.split_items, round.device_split_items},
                                      {&round.finish_items, round.device_finish_items}}) {
    if (!items->empty()) std::memcpy(host + offset, items->data(), items->size() * sizeof(RowItem));
  }
}

class CudaProjections final : public ProjectionBackend {
 public:
  CudaProjections(std::shared_ptr<Device> device, MatmulDevice& matmuls,
                  std::shared_ptr<WeightStore> store, std::size_t max_round_bytes)
      : device_(std::move(device)),
        matmuls_(matmuls),
        store_(std::move(store)),
        max_round_bytes_(max_round_bytes),
        memory_(device_) {}

  absl::StatusOr<std::shared_ptr<const PackedProjection>> Pack(
      std::int64_t in_features, std::span<const ProjectionPart> parts) override {
    auto matrix = store_->Pack(in_features, parts);
    if (!matrix.ok()) return matrix.status();
    return std::shared_ptr<const PackedProjection>(*std::move(matrix));
  }

  // As float32: the type of the parts is not known yet.
  std::size_t PackedBytes(std::int64_t in_features, std::int64_t out_features) const override {
    return PackedMatrix::Shape{in_features, out_features, DType::kFloat32}.bytes();
  }

  // A millisecond of an H100 is several times that, but longer calls gain nothing (the engine gives
  // at most 1024 rows of a task), and shorter ones wait for copies.
  double chunk_flops() const override { return 2e11; }

  absl::Status Project(std::span<const ProjectionTask> tasks) override {
    for (const ProjectionRound& round : PlanProjections(tasks, max_round_bytes_)) {
      if (absl::Status status = RunRound(round); !status.ok()) return status;
    }
    return absl::OkStatus();
  }

 private:
  absl::Status RunRound(const ProjectionRound& round) {
    absl::Status status =
        memory_.Reserve(round.upload_bytes, round.scratch_bytes, round.result_bytes);
    if (!status.ok()) return status;
    FillUpload(round, memory_);
    status = Launch(round);
    // Work that was begun uses memory that the next round takes.
    absl::Status computed = device_->Synchronize();
    if (!status.ok()) return status;
    if (!computed.ok()) return computed;
    for (const ProjectionPass& pass : round.passes) {
      for (const PassPiece& piece : pass.pieces) {
        DeliverPiece(piece, memory_.host_results.data());
      }
    }
    return absl::OkStatus();
  }

  absl::Status Launch(const ProjectionRound& round) {
    const char* upload = memory_.upload.data();
    absl::Status status = device_->CopyToDevice(Stream::kCompute, memory_.upload.data(),
                                                memory_.host_upload.data(), round.upload_bytes);
    if (status.ok() && !round.split_items.empty()) {
      status =
          matmuls_.Split(static_cast<int>(round.split_items.size()),
                         {reinterpret_cast<const DeviceSplit*>(upload + round.device_splits),
                          reinterpret_cast<const RowItem*>(upload + round.device_split_items)});
    }
    for (const ProjectionPass& pass : round.passes) {
      if (status.ok()) status = Multiply(pass);
    }
    if (!status.ok()) return status;
    status =
        matmuls_.Finish(static_cast<int>(round.finish_items.size()),
                        {reinterpret_cast<const DeviceFinish*>(upload + round.device_finishes),
                         reinterpret_cast<const RowItem*>(upload + round.device_finish_items)});
    if (!status.ok()) return status;
    return device_->CopyToHost(Stream::kCompute, memory_.host_results.data(),
                               memory_.results.data(), round.result_bytes);
  }

  absl::Status Multiply(const ProjectionPass& pass) {
    const PackedMatrix& matrix = *pass.matrix;
    const PackedMatrix::Shape& packed = matrix.shape();
    const char* operand =
        pass.is_direct() ? memory_.upload.data() + pass.x : memory_.scratch.data() + pass.operand;
    auto* product = reinterpret_cast<float*>(memory_.scratch.data() + pass.product);
    for (std::int64_t row = 0; row < pass.operand_rows();) {
      const BlockAlgorithm& block = BlockFor(matrix.blocks(), pass.operand_rows() - row);
      absl::Status status = matmuls_.Multiply({block.rows, packed.padded_in(), packed.padded_out(),
                                               packed.dtype, matrix.has_fused_bias()},
                                              block.algorithm,
                                              {operand + row * packed.row_bytes(), matrix.weights(),
                                               HasFusedBias(pass) ? matrix.bias() : matrix.zeros(),
                                               product + row * packed.padded_out()});
      if (!status.ok()) return status;
      row += block.rows;
    }
    return absl::OkStatus();
  }

  const std::shared_ptr<Device> device_;
  MatmulDevice& matmuls_;  // the device's
  const std::shared_ptr<WeightStore> store_;
  const std::size_t max_round_bytes_;
  RunMemory memory_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<ProjectionBackend>> MakeCudaProjections(
    std::shared_ptr<Device> device, std::shared_ptr<Device> packing_device,
    const CudaProjectionOptions& options) {
  auto matmuls = device->matmuls();
  if (!matmuls.ok()) return matmuls.status();
  if (auto packing = packing_device->matmuls(); !packing.ok()) return packing.status();
  auto store = std::make_shared<WeightStore>(std::move(packing_device), options.block_rows);
  return std::make_unique<CudaProjections>(std::move(device), **matmuls, std::move(store),
                                           options.max_round_bytes);
}

}  // namespace attention::cuda
