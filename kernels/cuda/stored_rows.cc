#include "kernels/cuda/stored_rows.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <vector>

#include "kernels/cuda/contract/page_layout.h"

namespace attention::cuda {
namespace {

// Copies of pages in the host's memory, each page once.
class PageCopies {
 public:
  PageCopies(AttentionBackend& backend, std::size_t page_bytes)
      : backend_(backend), page_bytes_(page_bytes) {}

  void Add(void* page) { copies_.try_emplace(page); }

  absl::Status Load() {
    for (auto& [page, copy] : copies_) copy.resize(page_bytes_);
    return backend_.SavePages(Pairs());
  }
  absl::Status Store() { return backend_.RestorePages(Pairs()); }

  std::byte* At(void* page) { return copies_.at(page).data(); }

 private:
  std::vector<PageCopy> Pairs() {
    std::vector<PageCopy> pairs;
    pairs.reserve(copies_.size());
    for (auto& [page, copy] : copies_) pairs.push_back({page, copy.data(), page_bytes_});
    return pairs;
  }

  AttentionBackend& backend_;
  const std::size_t page_bytes_;
  std::map<void*, std::vector<std::byte>> copies_;
};

// A token's row of a head in a page.
struct StoredRow {
  std::byte* head = nullptr;  // where the head begins in the page
  std::int64_t token = 0;     // in the page
};

// The pages of a layer, one form for keys and values.
class Rows {
 public:
  Rows(const KvGeometry& geometry, std::int64_t page_size)
      : layout_(MakePageLayout(geometry, page_size)),
        key_bytes_(geometry.head_dim_qk * DTypeBytes(geometry.dtype)),
        value_bytes_(
            geometry.value_is_key_prefix ? 0 : geometry.head_dim_v * DTypeBytes(geometry.dtype)),
        has_scales_(HasRowScales(geometry.dtype)),
        num_kv_heads_(geometry.num_kv_heads) {}

  std::size_t page_bytes() const { return static_cast<std::size_t>(layout_.page_bytes); }

  StoredRow At(PageCopies& copies, const PagedKvView& pages, std::int64_t token, int head) const {
    std::byte* page = copies.At(pages.pages[token / pages.page_size]);
    return {page + head * layout_.head_bytes, token % pages.page_size};
  }

  void Read(const StoredRow& from, const StoredRows& to, std::int64_t token, int head) const {
    const std::int64_t row = token * num_kv_heads_ + head;
    ForEachPiece(from.token,
                 [&](bool is_value, std::int64_t offset, std::size_t at, std::size_t n) {
                   std::memcpy(Dense(to, row, is_value) + at, from.head + offset, n);
                 });
    if (!has_scales_) return;
    std::memcpy(to.k_scales + row, KeyScale(from), sizeof(float));
    if (value_bytes_ > 0) std::memcpy(to.v_scales + row, ValueScale(from), sizeof(float));
  }

  // The padding is zeros.
  void Write(const StoredRows& from, std::int64_t token, int head, const StoredRow& to) const {
    const std::int64_t row = token * num_kv_heads_ + head;
    ForEachPiece(to.token, [&](bool is_value, std::int64_t offset, std::size_t at, std::size_t n) {
      std::memset(to.head + offset, 0, kPieceBytes);
      std::memcpy(to.head + offset, Dense(from, row, is_value) + at, n);
    });
    if (!has_scales_) return;
    std::memcpy(KeyScale(to), from.k_scales + row, sizeof(float));
    if (value_bytes_ > 0) std::memcpy(ValueScale(to), from.v_scales + row, sizeof(float));
  }

  // Both are of this layout, or of one that differs in the size of pages alone.
  void Move(const StoredRow& from, const Rows& to_rows, const StoredRow& to) const {
    std::vector<std::byte> key(key_bytes_), value(value_bytes_);
    float scales[2] = {};
    const StoredRows dense{key.data(), value.data(), scales, scales + 1};
    Rows one(*this), other(to_rows);
    one.num_kv_heads_ = other.num_kv_heads_ = 1;
    one.Read(from, dense, 0, 0);
    other.Write(dense, 0, 0, to);
  }

 private:
  // Calls visit(is_value, offset in the head, offset in the row, bytes of the row) for each piece
  // of a row, those of padding with 0 bytes.
  template <typename Visit>
  void ForEachPiece(std::int64_t token, Visit visit) const {
    const auto visit_row = [&](bool is_value, int row_bytes, std::size_t bytes) {
      for (int piece = 0; piece * kPieceBytes < row_bytes; ++piece) {
        const std::size_t at = static_cast<std::size_t>(piece) * kPieceBytes;
        const std::size_t n = at < bytes ? std::min<std::size_t>(kPieceBytes, bytes - at) : 0;
        visit(is_value,
              is_value ? layout_.value_piece(token, piece) : layout_.key_piece(token, piece),
              std::min(at, bytes), n);
      }
    };
    visit_row(false, layout_.key_row_bytes, key_bytes_);
    if (value_bytes_ > 0) visit_row(true, layout_.value_row_bytes, value_bytes_);
  }

  std::byte* Dense(const StoredRows& rows, std::int64_t row, bool is_value) const {
    return is_value ? rows.v + row * value_bytes_ : rows.k + row * key_bytes_;
  }
  std::byte* KeyScale(const StoredRow& row) const {
    return row.head + layout_.key_scale_offset + row.token * sizeof(float);
  }
  std::byte* ValueScale(const StoredRow& row) const {
    return row.head + layout_.value_scale_offset + row.token * sizeof(float);
  }

  PageLayout layout_;
  std::size_t key_bytes_;
  std::size_t value_bytes_;
  bool has_scales_;
  std::int64_t num_kv_heads_;
};

// Pages of one task that are copied at a time.
constexpr std::int64_t kPagesAtOnce = 32;

// Calls copy(rows, copies, begin, end) for parts of the task's tokens, whose pages are there.
template <typename Copy>
absl::Status ForEachPart(AttentionBackend& backend, const StoredRowsTask& task, bool is_written,
                         Copy copy) {
  const Rows rows(task.geometry, task.pages.page_size);
  const std::int64_t step = kPagesAtOnce * task.pages.page_size;
  for (std::int64_t begin = 0; begin < task.num_tokens;) {
    const std::int64_t next = (task.position + begin) / step * step + step - task.position;
    const std::int64_t end = std::min(task.num_tokens, next);
    PageCopies copies(backend, rows.page_bytes());
    for (std::int64_t i = begin; i < end; ++i) {
      copies.Add(task.pages.pages[(task.position + i) / task.pages.page_size]);
    }
    if (absl::Status status = copies.Load(); !status.ok()) return status;
    for (std::int64_t i = begin; i < end; ++i) {
      for (int head = 0; head < task.geometry.num_kv_heads; ++head) {
        copy(rows, rows.At(copies, task.pages, task.position + i, head), i, head);
      }
    }
    if (is_written) {
      if (absl::Status status = copies.Store(); !status.ok()) return status;
    }
    begin = end;
  }
  return absl::OkStatus();
}

absl::Status MoveTask(AttentionBackend& backend, const MoveTokensTask& task) {
  const Rows from(task.geometry, task.from.page_size);
  const Rows to(task.geometry, task.to.page_size);
  PageCopies read(backend, from.page_bytes()), written(backend, to.page_bytes());
  const auto count = static_cast<std::int64_t>(task.tokens.size());
  for (std::int64_t i = 0; i < count; ++i) {
    read.Add(task.from.pages[task.tokens[i] / task.from.page_size]);
    written.Add(task.to.pages[(task.position + i) / task.to.page_size]);
  }
  if (absl::Status status = read.Load(); !status.ok()) return status;
  if (absl::Status status = written.Load(); !status.ok()) return status;
  for (std::int64_t i = 0; i < count; ++i) {
    from.Move(from.At(read, task.from, task.tokens[i], task.kv_head), to,
              to.At(written, task.to, task.position + i, task.kv_head));
  }
  return written.Store();
}

}  // namespace

absl::Status ReadStoredRows(AttentionBackend& backend, std::span<const StoredRowsTask> tasks) {
  for (const StoredRowsTask& task : tasks) {
    absl::Status status =
        ForEachPart(backend, task, /*is_written=*/false,
                    [&](const Rows& rows, const StoredRow& stored, std::int64_t token, int head) {
                      rows.Read(stored, task.rows, token, head);
                    });
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status WriteStoredRows(AttentionBackend& backend, std::span<const StoredRowsTask> tasks) {
  for (const StoredRowsTask& task : tasks) {
    absl::Status status =
        ForEachPart(backend, task, /*is_written=*/true,
                    [&](const Rows& rows, const StoredRow& stored, std::int64_t token, int head) {
                      rows.Write(task.rows, token, head, stored);
                    });
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status MoveStoredTokens(AttentionBackend& backend, std::span<const MoveTokensTask> tasks) {
  for (const MoveTokensTask& task : tasks) {
    if (absl::Status status = MoveTask(backend, task); !status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace attention::cuda
