// The shapes of the benchmark and the tensors behind them.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "kernels/api/attention_backend.h"
#include "kernels/base/aligned_buffer.h"

namespace attention::bench {

// The resource that bounds a case: its rate is measured in that, and compared with its ceiling.
enum class Bound { kArithmetic, kMemory };

struct CaseSpec {
  std::string name;
  int batch_size = 1;
  int num_q_heads = 0;
  int num_kv_heads = 0;
  std::int64_t q_len = 0;
  std::int64_t kv_len = 0;
  int head_dim = 0;
  bool is_causal = false;
  std::int64_t window_left = -1;
  Bound bound = Bound::kArithmetic;
  int head_dim_v = 0;      // 0: head_dim
  bool is_latent = false;  // values are prefixes of the keys

  int value_dim() const { return head_dim_v == 0 ? head_dim : head_dim_v; }
  bool is_decode() const { return q_len == 1; }
};

// Prefill P1-P5, decode D1-D5, and many small requests (S1) beside one of equal work (S2).
const std::vector<CaseSpec>& AllCases();
// Heads of 512 and of 576 and 512 dims beside 256, in prefill (P) and decode (W); and latent
// attention (L1).
const std::vector<CaseSpec>& WideCases();

// A case with its tensors. Prefill reads contiguous keys and values (packing is part of the time),
// decode reads pages; it walks through copies of the cache that exceed the processor's, so that
// every repetition reads memory.
class BenchCase {
 public:
  // Aligned as the server's tensors are.
  struct Bytes {
    AlignedBuffer<std::uint8_t> buffer;
    std::size_t size = 0;

    void Resize(std::size_t bytes) {
      std::memset(buffer.Reserve(bytes), 0, bytes);
      size = bytes;
    }
    std::uint8_t* data() { return buffer.data(); }
    const std::uint8_t* data() const { return buffer.data(); }
  };

  // Rows have the cache's type; beside one with row scales they are bfloat16.
  BenchCase(const CaseSpec& spec, DType kv_dtype, AttentionBackend& backend);
  ~BenchCase();
  BenchCase(const BenchCase&) = delete;

  // Plans and runs the next repetition.
  void Run();

  const WorkEstimate& work() const { return work_; }

  // The tasks of the first repetition.
  const std::vector<AttentionTask>& tasks() const { return steps_.front(); }

 private:
  void MakeRows(AttentionTask* task);
  void MakeBatch(const AttentionTask& first);
  void MakePages(const AttentionTask& rows);

  CaseSpec spec_;
  DType kv_dtype_;
  DType dtype_;
  AttentionBackend& backend_;
  WorkEstimate work_;                              // of one repetition
  Bytes q_, k_, v_, o_;                            // of all sequences; decode shares one q, k and v
  std::vector<std::vector<AttentionTask>> steps_;  // [copy][batch]
  std::vector<std::vector<void*>> tables_;         // [copy * batch][page]
  void* pages_ = nullptr;
  std::size_t pages_bytes_ = 0;
  std::size_t next_step_ = 0;
};

}  // namespace attention::bench
