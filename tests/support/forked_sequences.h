// Sequences in pages that are forks of each other, as sessions have them: a fork reads the full
// pages of what it was forked from, and has a copy of the page that its length ends in.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <random>
#include <vector>

#include "kernels/api/attention_backend.h"

namespace attention::testing {

struct ForkedSpec {
  KvGeometry geometry = {.num_kv_heads = 2, .head_dim_qk = 32, .head_dim_v = 32};
  std::int64_t page_size = 64;
  std::uint32_t seed = 1;
};

// Memory that was never written holds NaN. The backend must outlive it.
class ForkedSequences {
 public:
  ForkedSequences(AttentionBackend& backend, const ForkedSpec& spec);

  // Makes a sequence of `length` tokens of `source` (negative: of none) and of `added` random ones;
  // returns its index.
  int Fork(int source, std::int64_t length, std::int64_t added);

  // `count` forks of forks, made from the ones before at random lengths.
  void ForkAtRandom(int count, std::int64_t max_added);

  int size() const { return static_cast<int>(sequences_.size()); }
  std::int64_t length(int sequence) const { return sequences_[sequence].length; }
  PagedKvView pages(int sequence) const;

 private:
  struct Sequence {
    std::int64_t length = 0;
    std::vector<void*> table;
  };

  void* NewPage();
  void Append(Sequence* sequence, std::int64_t count);

  AttentionBackend& backend_;
  const ForkedSpec spec_;
  const std::size_t page_bytes_;
  std::mt19937 random_;
  std::deque<std::shared_ptr<void>> memory_;
  std::deque<Sequence> sequences_;
};

}  // namespace attention::testing
