// Attention as oneDNN 2 has it: matmul, softmax, matmul. The query heads of a KV head are stacked
// as rows of one problem, so that keys and values pass the processor once.
#include <algorithm>
#include <cmath>
#include <exception>
#include <memory>
#include <oneapi/dnnl/dnnl.hpp>
#include <string>
#include <unordered_map>
#include <vector>

#include "tests/benchmark/peers/peers_c.h"

namespace attention::bench {
namespace {

using dnnl::memory;

// Scores of this many bytes are computed at a time; more would only travel further.
constexpr std::int64_t kScoreBytes = std::int64_t{64} << 20;

class OneDnnCase {
 public:
  OneDnnCase(const PeersShape& shape, const PeersTensors& tensors, int num_copies)
      : tensors_(tensors),
        num_copies_(num_copies),
        type_(tensors.is_bfloat16 != 0 ? memory::data_type::bf16 : memory::data_type::f32),
        problems_(shape.batch_size * shape.num_kv_heads),
        rows_(shape.num_q_heads / shape.num_kv_heads * shape.q_len),
        keys_(shape.kv_len),
        dim_(shape.head_dim) {
    chunk_ = std::clamp<std::int64_t>(kScoreBytes / (rows_ * keys_ * 4), 1, problems_);
    while (problems_ % chunk_ != 0) --chunk_;
    MakePrimitives();
  }

  void Run() {
    const std::int64_t copy = next_copy_++ % num_copies_;
    for (std::int64_t first = 0; first < problems_; first += chunk_) {
      const std::int64_t rows_offset = first * rows_ * dim_ * ElementBytes();
      const std::int64_t keys_offset = (copy * problems_ + first) * keys_ * dim_ * ElementBytes();
      q_.set_data_handle(At(tensors_.q, rows_offset));
      k_.set_data_handle(At(tensors_.k, keys_offset));
      v_.set_data_handle(At(tensors_.v, keys_offset));
      o_.set_data_handle(At(tensors_.o, rows_offset));
      qk_.execute(stream_, {{DNNL_ARG_SRC, q_}, {DNNL_ARG_WEIGHTS, k_}, {DNNL_ARG_DST, scores_}});
      softmax_.execute(stream_, {{DNNL_ARG_SRC, scores_}, {DNNL_ARG_DST, weights_}});
      pv_.execute(stream_, {{DNNL_ARG_SRC, weights_}, {DNNL_ARG_WEIGHTS, v_}, {DNNL_ARG_DST, o_}});
    }
    stream_.wait();
  }

 private:
  std::int64_t ElementBytes() const { return type_ == memory::data_type::f32 ? 4 : 2; }

  static void* At(const void* data, std::int64_t offset) {
    return const_cast<char*>(static_cast<const char*>(data)) + offset;
  }

  void MakePrimitives() {
    using Tag = memory::format_tag;
    const memory::desc q({chunk_, rows_, dim_}, type_, Tag::abc);
    const memory::desc k_transposed({chunk_, dim_, keys_}, type_, Tag::acb);
    const memory::desc v({chunk_, keys_, dim_}, type_, Tag::abc);
    const memory::desc scores({chunk_, rows_, keys_}, memory::data_type::f32, Tag::abc);
    const memory::desc weights({chunk_, rows_, keys_}, type_, Tag::abc);
    dnnl::primitive_attr scaled;
    scaled.set_output_scales(0, {1 / std::sqrt(static_cast<float>(dim_))});
    qk_ = dnnl::matmul({{q, k_transposed, scores}, scaled, engine_});
    softmax_ = dnnl::softmax_v2_forward({{dnnl::prop_kind::forward_inference,
                                          dnnl::algorithm::softmax_accurate, scores, weights, 2},
                                         engine_});
    pv_ = dnnl::matmul({{weights, v, q}, engine_});
    q_ = memory(q, engine_, nullptr);
    k_ = memory(k_transposed, engine_, nullptr);
    v_ = memory(v, engine_, nullptr);
    o_ = memory(q, engine_, nullptr);
    scores_ = memory(scores, engine_);
    // In float32 the softmax works in place.
    weights_ = type_ == memory::data_type::f32 ? scores_ : memory(weights, engine_);
  }

  PeersTensors tensors_;
  std::int64_t num_copies_;
  memory::data_type type_;
  std::int64_t problems_;  // KV heads of all sequences
  std::int64_t rows_;      // of a problem
  std::int64_t keys_;
  std::int64_t dim_;
  std::int64_t chunk_ = 1;  // problems at a time
  std::int64_t next_copy_ = 0;
  dnnl::engine engine_{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream_{engine_};
  dnnl::matmul qk_, pv_;
  dnnl::softmax_v2_forward softmax_;
  memory q_, k_, v_, o_, scores_, weights_;
};

}  // namespace
}  // namespace attention::bench

using attention::bench::OneDnnCase;

const char* PeersOneDnnVersion() {
  static const auto* text = new std::string(std::to_string(dnnl_version()->major) + "." +
                                            std::to_string(dnnl_version()->minor) + "." +
                                            std::to_string(dnnl_version()->patch));
  return text->c_str();
}

void* PeersOneDnnCreate(const PeersShape* shape, const PeersTensors* tensors, int num_copies) {
  try {
    return std::make_unique<OneDnnCase>(*shape, *tensors, num_copies).release();
  } catch (const std::exception& error) {
    attention::bench::SetPeersError(error.what());
    return nullptr;
  }
}

int PeersOneDnnRun(void* onednn_case) {
  try {
    static_cast<OneDnnCase*>(onednn_case)->Run();
    return 0;
  } catch (const std::exception& error) {
    attention::bench::SetPeersError(error.what());
    return -1;
  }
}

void PeersOneDnnDestroy(void* onednn_case) { delete static_cast<OneDnnCase*>(onednn_case); }
