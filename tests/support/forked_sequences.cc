#include "tests/support/forked_sequences.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

namespace attention::testing {

ForkedSequences::ForkedSequences(AttentionBackend& backend, const ForkedSpec& spec)
    : backend_(backend),
      spec_(spec),
      page_bytes_(backend.PageLayout(spec.geometry, spec.page_size).page_bytes),
      random_(spec.seed) {}

void* ForkedSequences::NewPage() {
  MemoryAllocator& allocator = backend_.memory();
  const std::size_t bytes = page_bytes_;
  void* page = allocator.Allocate(bytes);
  memory_.emplace_back(page, [&allocator, bytes](void* memory) { allocator.Free(memory, bytes); });
  std::memset(page, 0xff, bytes);
  return page;
}

void ForkedSequences::Append(Sequence* sequence, std::int64_t count) {
  if (count == 0) return;
  const KvGeometry& geometry = spec_.geometry;
  std::normal_distribution<float> normal;
  std::vector<float> k(count * geometry.num_kv_heads * geometry.head_dim_qk);
  std::vector<float> v(count * geometry.num_kv_heads * geometry.head_dim_v);
  for (float& x : k) x = normal(random_);
  for (float& x : v) x = normal(random_);
  const std::int64_t end = sequence->length + count;
  while (static_cast<std::int64_t>(sequence->table.size()) * spec_.page_size < end) {
    sequence->table.push_back(NewPage());
  }
  const auto rows = [&](const std::vector<float>& values, int dim) {
    return DenseRows(static_cast<const void*>(values.data()), DType::kFloat32,
                     geometry.num_kv_heads, dim);
  };
  const KvAppendTask append{
      .geometry = geometry,
      .destination = {sequence->table.data(), static_cast<std::int64_t>(sequence->table.size()),
                      spec_.page_size},
      .position = sequence->length,
      .num_tokens = count,
      .k = rows(k, geometry.head_dim_qk),
      .v = geometry.value_is_key_prefix ? RowsView{} : rows(v, geometry.head_dim_v)};
  const absl::Status status = backend_.AppendKv({&append, 1});
  ASSERT_TRUE(status.ok()) << status;
  sequence->length = end;
}

int ForkedSequences::Fork(int source, std::int64_t length, std::int64_t added) {
  Sequence fork;
  fork.length = length;
  if (source >= 0) {
    const Sequence& from = sequences_[source];
    fork.table.assign(from.table.begin(), from.table.begin() + length / spec_.page_size);
    if (length % spec_.page_size != 0) {
      void* page = NewPage();
      std::memcpy(page, from.table[length / spec_.page_size], page_bytes_);
      fork.table.push_back(page);
    }
  }
  Append(&fork, added);
  sequences_.push_back(std::move(fork));
  return size() - 1;
}

void ForkedSequences::ForkAtRandom(int count, std::int64_t max_added) {
  for (int i = 0; i < count; ++i) {
    const int source = static_cast<int>(random_() % sequences_.size());
    // Most forks are made near the end of what they are forked from.
    const std::int64_t length = sequences_[source].length;
    const std::int64_t back = random_() % 3 == 0 ? length : std::min<std::int64_t>(length, 100);
    const auto drawn = [this](std::int64_t most) {
      return static_cast<std::int64_t>(random_() % static_cast<std::uint64_t>(most + 1));
    };
    Fork(source, length - drawn(back), drawn(max_added));
  }
}

PagedKvView ForkedSequences::pages(int sequence) const {
  const std::vector<void*>& table = sequences_[sequence].table;
  return {table.data(), static_cast<std::int64_t>(table.size()), spec_.page_size};
}

}  // namespace attention::testing
