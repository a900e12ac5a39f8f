#include "tests/benchmark/cuda/peer.h"

#include <vector>

#include "absl/strings/str_cat.h"

namespace attention::bench {
namespace {

class Peer final : public Contender {
 public:
  Peer(const AttentionBenchPeer& peer, std::int64_t token, const CaseTensors& tensors,
       cuda::Device& device)
      : peer_(peer), token_(token), tensors_(tensors), device_(device) {}
  ~Peer() override {
    if (is_prepared_) peer_.close(token_);
  }

  absl::Status Prepare(const Case& bench_case, void* stream) {
    std::vector<AttentionBenchPart> parts;
    for (const auto& tensors : tensors_) parts.push_back(Describe(*tensors));
    const AttentionBenchCase described{.name = bench_case.name.c_str(),
                                       .num_parts = static_cast<std::int64_t>(parts.size()),
                                       .parts = parts.data(),
                                       .stream = stream};
    char text[512] = "";
    const int answer = peer_.prepare(token_, &described, text, sizeof(text));
    form_ = text;
    is_prepared_ = answer == kAttentionBenchOk;
    if (is_prepared_) return Compute();
    return answer == kAttentionBenchAbsent ? absl::UnimplementedError(text)
                                           : absl::InternalError(text);
  }

  std::string name() const override { return peer_.name; }
  std::string form() const override { return form_; }
  absl::Status Launch() override { return Answered(peer_.launch(token_)); }

  absl::Status Compute() override {
    absl::Status status = Launch();
    for (std::size_t part = 0; status.ok() && part < tensors_.size(); ++part) {
      const PartTensors& tensors = *tensors_[part];
      const std::vector<char> zeros(tensors.part().batch_size * tensors.query_bytes());
      status = device_.CopyToDevice(cuda::Stream::kCompute, tensors.device_o(), zeros.data(),
                                    zeros.size());
      if (status.ok()) status = device_.Synchronize();
      if (status.ok()) {
        status =
            Answered(peer_.output(token_, static_cast<std::int64_t>(part), tensors.device_o()));
      }
    }
    const absl::Status waited = device_.Synchronize();
    return status.ok() ? waited : status;
  }

  absl::Status ReadRow(const RowRef& ref, std::vector<float>* row) override {
    const PartTensors& tensors = *tensors_[ref.part];
    const Part& part = tensors.part();
    const auto row_bytes = static_cast<std::int64_t>(row->size() * DTypeBytes(part.dtype));
    const std::int64_t index =
        (ref.sequence * part.q_len + ref.query) * part.num_q_heads + ref.head;
    std::vector<char> bytes(row_bytes);
    absl::Status status = device_.CopyToHost(cuda::Stream::kCompute, bytes.data(),
                                             tensors.device_o() + index * row_bytes, row_bytes);
    if (status.ok()) status = device_.Synchronize();
    if (!status.ok()) return status;
    for (std::size_t i = 0; i < row->size(); ++i) {
      (*row)[i] = LoadElement(bytes.data(), part.dtype, static_cast<std::int64_t>(i));
    }
    return absl::OkStatus();
  }

 private:
  static AttentionBenchPart Describe(const PartTensors& tensors) {
    const Part& part = tensors.part();
    return {.batch_size = part.batch_size,
            .num_q_heads = part.num_q_heads,
            .num_kv_heads = part.num_kv_heads,
            .q_len = part.q_len,
            .kv_len = part.kv_len,
            .head_dim = part.head_dim,
            .is_causal = part.is_causal ? 1 : 0,
            .window_left = part.window_left,
            .shared_len = part.shared_len,
            .dtype = DTypeName(part.dtype).data(),
            .q = tensors.device_q(),
            .k = tensors.device_k(),
            .v = tensors.device_v()};
  }

  absl::Status Answered(int answer) const {
    if (answer == kAttentionBenchOk) return absl::OkStatus();
    return absl::InternalError(absl::StrCat(peer_.name, " failed"));
  }

  const AttentionBenchPeer& peer_;
  const std::int64_t token_;
  const CaseTensors& tensors_;
  cuda::Device& device_;
  std::string form_;
  bool is_prepared_ = false;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Contender>> MakePeer(const AttentionBenchPeer& peer,
                                                    std::int64_t token, const Case& bench_case,
                                                    const CaseTensors& tensors,
                                                    cuda::Device& device, void* stream) {
  auto made = std::make_unique<Peer>(peer, token, tensors, device);
  if (absl::Status status = made->Prepare(bench_case, stream); !status.ok()) return status;
  return made;
}

}  // namespace attention::bench
