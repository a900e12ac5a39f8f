#include "kernels/cpu/stored_rows.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "kernels/base/divide.h"
#include "kernels/cpu/packed_layout.h"

namespace attention::cpu {
namespace {

// One KV head's block of 16 tokens. A key is a column of units: elements, or in bfloat16 pairs of
// them. A value is a row; in bfloat16 two values lie element by element side by side.
struct Block {
  std::byte* keys = nullptr;    // behind the scales
  std::byte* values = nullptr;  // the same; null in a latent cache
  float* key_scales = nullptr;
  float* value_scales = nullptr;
};

Block BlockAt(const KvGeometry& geometry, const PackedLayout& layout, const PagedKvView& pages,
              int kv_head, std::int64_t token) {
  const std::int64_t block = token / kBlockTokens;
  const std::int64_t in_page = block % layout.blocks_per_page;
  auto* page = static_cast<std::byte*>(pages.pages[block / layout.blocks_per_page]);
  const std::size_t header = HasRowScales(geometry.dtype) ? kScaleBytes : 0;
  Block found;
  std::byte* keys = page + layout.key_offset(kv_head, in_page);
  found.keys = keys + header;
  found.key_scales = reinterpret_cast<float*>(keys);
  if (layout.is_latent) return found;
  std::byte* values = page + layout.value_offset(kv_head, in_page);
  found.values = values + header;
  found.value_scales = reinterpret_cast<float*>(values);
  return found;
}

// The elements of keys and values in a type, as PackedLayout lays them out.
template <typename ElementType, typename KeyUnit>
struct StoredForm {
  using Element = ElementType;
  static constexpr int kUnit = sizeof(KeyUnit) / sizeof(Element);  // elements of a key's unit
  static constexpr bool kIsPaired = kUnit == 2;

  // Calls copy<bytes>(index in the block, index in a dense row) for each unit of the token's key.
  template <typename Copy>
  static void ForEachKeyUnit(int token, int dim_qk, Copy copy) {
    int dim = 0;
    for (; dim + kUnit <= dim_qk; dim += kUnit) {
      copy.template operator()<sizeof(KeyUnit)>(dim * kBlockTokens + token * kUnit, dim);
    }
    if (dim == dim_qk) return;
    copy.template operator()<sizeof(Element)>(dim * kBlockTokens + token * kUnit, dim);
  }
};

// Rows begin at any byte.
template <std::size_t kBytes>
void CopyBytes(const void* from, void* to) {
  std::memcpy(to, from, kBytes);
}
void CopyScale(const float* from, float* to) { CopyBytes<sizeof(float)>(from, to); }

template <typename Form>
void CopyKey(const Block& block, int token, int dim_qk, std::byte* row, bool is_read) {
  constexpr std::size_t kElement = sizeof(typename Form::Element);
  std::byte* stored = block.keys;
  if (is_read) {
    Form::ForEachKeyUnit(token, dim_qk, [&]<std::size_t kBytes>(int at, int dim) {
      CopyBytes<kBytes>(stored + at * kElement, row + dim * kElement);
    });
  } else {
    Form::ForEachKeyUnit(token, dim_qk, [&]<std::size_t kBytes>(int at, int dim) {
      CopyBytes<kBytes>(row + dim * kElement, stored + at * kElement);
    });
  }
}

template <typename Form>
void CopyValue(const Block& block, const PackedLayout& layout, int token, std::byte* row,
               bool is_read) {
  constexpr std::size_t kElement = sizeof(typename Form::Element);
  std::byte* stored =
      block.values + ValueIndex(Form::kIsPaired, layout.padded_dim_v, token, 0) * kElement;
  if constexpr (Form::kIsPaired) {
    for (int channel = 0; channel < layout.dim_v; ++channel) {
      std::byte* place = stored + channel * 2 * kElement;
      std::byte* element = row + channel * kElement;
      is_read ? CopyBytes<kElement>(place, element) : CopyBytes<kElement>(element, place);
    }
  } else {
    const std::size_t bytes = layout.dim_v * kElement;
    is_read ? std::memcpy(row, stored, bytes) : std::memcpy(stored, row, bytes);
  }
}

template <typename Form>
void CopyRows(const StoredRowsTask& task, const PackedLayout& layout, int kv_head,
              std::int64_t begin, std::int64_t end, bool is_read) {
  const std::size_t element = DTypeBytes(task.geometry.dtype);
  const bool has_scales = HasRowScales(task.geometry.dtype);
  for (std::int64_t i = begin; i < end; ++i) {
    const std::int64_t position = task.position + i;
    const int token = static_cast<int>(position % kBlockTokens);
    const Block block = BlockAt(task.geometry, layout, task.pages, kv_head, position);
    const std::int64_t row = i * task.geometry.num_kv_heads + kv_head;
    CopyKey<Form>(block, token, layout.dim_qk, task.rows.k + row * layout.dim_qk * element,
                  is_read);
    if (has_scales) {
      float* scale = task.rows.k_scales + row;
      is_read ? CopyScale(block.key_scales + token, scale)
              : CopyScale(scale, block.key_scales + token);
    }
    if (layout.is_latent) continue;
    CopyValue<Form>(block, layout, token, task.rows.v + row * layout.dim_v * element, is_read);
    if (has_scales) {
      float* scale = task.rows.v_scales + row;
      is_read ? CopyScale(block.value_scales + token, scale)
              : CopyScale(scale, block.value_scales + token);
    }
  }
}

template <typename Form>
void MoveToken(const Block& from, int from_token, const Block& to, int to_token,
               const PackedLayout& layout, bool has_scales) {
  constexpr std::size_t kElement = sizeof(typename Form::Element);
  const std::ptrdiff_t lanes = static_cast<std::ptrdiff_t>(to_token - from_token) * Form::kUnit;
  Form::ForEachKeyUnit(from_token, layout.dim_qk, [&]<std::size_t kBytes>(int at, int) {
    CopyBytes<kBytes>(from.keys + at * kElement, to.keys + (at + lanes) * kElement);
  });
  if (has_scales) to.key_scales[to_token] = from.key_scales[from_token];
  if (layout.is_latent) return;
  const auto value_of = [&](const Block& block, int token) {
    return block.values + ValueIndex(Form::kIsPaired, layout.padded_dim_v, token, 0) * kElement;
  };
  const std::byte* from_value = value_of(from, from_token);
  std::byte* to_value = value_of(to, to_token);
  if constexpr (Form::kIsPaired) {
    for (int channel = 0; channel < layout.dim_v; ++channel) {
      CopyBytes<kElement>(from_value + channel * 2 * kElement, to_value + channel * 2 * kElement);
    }
  } else {
    std::memmove(to_value, from_value, layout.dim_v * kElement);
  }
  if (has_scales) to.value_scales[to_token] = from.value_scales[from_token];
}

// A block whose 16 tokens stay together keeps its form.
void MoveBlock(const Block& from, const Block& to, const PackedLayout& layout, bool has_scales) {
  const std::size_t header = has_scales ? kScaleBytes : 0;
  std::memmove(to.keys - header, from.keys - header, layout.key_block_bytes);
  if (layout.is_latent) return;
  std::memmove(to.values - header, from.values - header, layout.value_block_bytes);
}

template <typename Form>
void MoveTokens(const MoveTokensTask& task, const PackedLayout& from_layout,
                const PackedLayout& to_layout) {
  const bool has_scales = HasRowScales(task.geometry.dtype);
  const auto count = static_cast<std::int64_t>(task.tokens.size());
  for (std::int64_t i = 0; i < count;) {
    const std::int64_t token = task.tokens[i];
    const std::int64_t place = task.position + i;
    const Block from = BlockAt(task.geometry, from_layout, task.from, task.kv_head, token);
    const Block to = BlockAt(task.geometry, to_layout, task.to, task.kv_head, place);
    const bool is_whole = token % kBlockTokens == 0 && place % kBlockTokens == 0 &&
                          i + kBlockTokens <= count &&
                          task.tokens[i + kBlockTokens - 1] == token + kBlockTokens - 1;
    if (is_whole) {
      MoveBlock(from, to, from_layout, has_scales);
      i += kBlockTokens;
      continue;
    }
    MoveToken<Form>(from, static_cast<int>(token % kBlockTokens), to,
                    static_cast<int>(place % kBlockTokens), from_layout, has_scales);
    ++i;
  }
}

// Calls `call` with the form of the cache's type.
template <typename Call>
void WithForm(DType dtype, Call call) {
  if (HasRowScales(dtype)) return call(StoredForm<std::uint8_t, std::uint8_t>());
  if (dtype == DType::kFloat32) return call(StoredForm<std::uint32_t, std::uint32_t>());
  if (dtype == DType::kBFloat16) return call(StoredForm<std::uint16_t, std::uint32_t>());
  call(StoredForm<std::uint16_t, std::uint16_t>());
}

// A part of a task that one thread takes: between blocks, so that no two threads write the same.
struct RowsItem {
  const StoredRowsTask* task;
  int kv_head;
  std::int64_t begin;
  std::int64_t end;
};

// 64 KiB of bfloat16 with 128 + 128 dims: some ten microseconds.
constexpr std::int64_t kItemTokens = 128;

std::vector<RowsItem> ItemsOf(std::span<const StoredRowsTask> tasks) {
  std::vector<RowsItem> items;
  for (const StoredRowsTask& task : tasks) {
    for (std::int64_t begin = 0; begin < task.num_tokens;) {
      const std::int64_t next =
          RoundDown<std::int64_t>(task.position + begin + kItemTokens, kBlockTokens);
      const std::int64_t end = std::min(task.num_tokens, next - task.position);
      for (int head = 0; head < task.geometry.num_kv_heads; ++head) {
        items.push_back({&task, head, begin, end});
      }
      begin = end;
    }
  }
  return items;
}

void CopyTasks(std::span<const StoredRowsTask> tasks, ThreadPool& pool, bool is_read) {
  const std::vector<RowsItem> items = ItemsOf(tasks);
  pool.ParallelFor(static_cast<std::int64_t>(items.size()), [&](std::int64_t index, int) {
    const RowsItem& item = items[index];
    const PackedLayout layout = MakePackedLayout(item.task->geometry, item.task->pages.page_size);
    WithForm(item.task->geometry.dtype, [&](auto form) {
      CopyRows<decltype(form)>(*item.task, layout, item.kv_head, item.begin, item.end, is_read);
    });
  });
}

}  // namespace

void ReadStoredRows(std::span<const StoredRowsTask> tasks, ThreadPool& pool) {
  CopyTasks(tasks, pool, /*is_read=*/true);
}

void WriteStoredRows(std::span<const StoredRowsTask> tasks, ThreadPool& pool) {
  CopyTasks(tasks, pool, /*is_read=*/false);
}

void MoveStoredTokens(std::span<const MoveTokensTask> tasks, ThreadPool& pool) {
  pool.ParallelFor(static_cast<std::int64_t>(tasks.size()), [&](std::int64_t index, int) {
    const MoveTokensTask& task = tasks[index];
    const PackedLayout from = MakePackedLayout(task.geometry, task.from.page_size);
    const PackedLayout to = MakePackedLayout(task.geometry, task.to.page_size);
    WithForm(task.geometry.dtype, [&](auto form) { MoveTokens<decltype(form)>(task, from, to); });
  });
}

}  // namespace attention::cpu
