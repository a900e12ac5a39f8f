// The memory that a thread will read soon, so that micro-kernels can ask for it while they compute.
//
// Hardware prefetchers stop at 4 KiB pages, and a decode's keys lie blocks and pages apart; and a
// kernel that waits for memory in one phase and computes in the next reaches the sum of both times
// instead of the larger. So the driver lists what will be read, and every step of every phase asks
// for a line or a few of it.
//
// How far ahead: an item of one row block (decode) reads each byte once, and its list stays a fixed
// distance ahead of what it reads, across ranges and items. An item of several row blocks reads its
// range as often from L2, and while it does the whole next range comes in.
#pragma once

#include <cstddef>
#include <cstdint>

namespace attention::cpu {

inline constexpr std::size_t kCacheLine = 64;

// Read bandwidth of one core by distance (Sapphire Rapids, prefetch into L2): 15.5 GB/s at 1
// KiB, 16.7 from 4 to 64 KiB, 16.3 at 256 KiB, 15.1 at 512 KiB; 14.1 without. It must exceed what
// one micro-tile reads, 32 KiB of 128 dims in float32.
inline constexpr std::size_t kAheadBytes = 64 * 1024;

struct AheadChunk {
  const char* begin;
  const char* end;
};

// A place in a list, held in registers by a micro-kernel.
struct AheadCursor {
  const char* line;
  const char* end;          // of the chunk
  const AheadChunk* after;  // the next chunk; the last one of a list is empty and repeats

  // Asks for the next line.
  inline void Step() {
    __builtin_prefetch(line, /*rw=*/0, /*locality=*/2);  // into L2: L1 is full of scores
    line += kCacheLine;
    if (line >= end) {
      line = after->begin;
      end = after->end;
      after += line != end;
    }
  }
};

class AheadList {
 public:
  // Rows of queries and outputs, blocks, and some hundred rows of keys and values to pack.
  static constexpr int kMaxChunks = 1024;

  AheadList() { Clear(); }

  // Sparse: one line a step will do, because several row blocks step through.
  void Clear(bool is_sparse = false) {
    is_sparse_ = is_sparse;
    count_ = 0;
    chunks_[0] = {reinterpret_cast<const char*>(this), reinterpret_cast<const char*>(this)};
    cursor_ = {chunks_[0].begin, chunks_[0].end, chunks_};
  }

  // Chunks that continue the one before become one with it; those that find no room are left out.
  // To be called before the first Step.
  void Add(const void* data, std::size_t bytes) {
    const auto* begin = static_cast<const char*>(data);
    const char* end = begin + bytes;
    if (count_ > 0 && chunks_[count_ - 1].end == begin) {
      chunks_[count_ - 1].end = end;
    } else if (count_ < kMaxChunks) {
      chunks_[count_ + 1] = chunks_[count_];  // the empty one
      chunks_[count_++] = {begin, end};
    }
    cursor_ = {chunks_[0].begin, chunks_[0].end, chunks_ + 1};
  }

  bool empty() const { return cursor_.line == cursor_.end; }

  bool is_sparse() const { return is_sparse_; }

  AheadCursor cursor() const { return cursor_; }
  void set_cursor(const AheadCursor& cursor) { cursor_ = cursor; }

 private:
  bool is_sparse_ = false;
  int count_ = 0;
  AheadCursor cursor_;
  AheadChunk chunks_[kMaxChunks + 1];
};

}  // namespace attention::cpu
