// The benchmark as a library: peers.py calls it by ctypes and hands it peers as functions.
#pragma once

#include <cstdint>

extern "C" {

// Sequences alike (cases.h), their tensors dense in the device's memory: q and o [batch_size,
// q_len, num_q_heads, head_dim], k and v [batch_size, kv_len, num_kv_heads, head_dim]. The last
// query is that of the newest key.
struct AttentionBenchPart {
  std::int64_t batch_size;
  std::int64_t num_q_heads;
  std::int64_t num_kv_heads;
  std::int64_t q_len;
  std::int64_t kv_len;
  std::int64_t head_dim;
  std::int64_t is_causal;
  std::int64_t window_left;  // negative: unbounded
  std::int64_t shared_len;   // first tokens that all sequences have in common
  const char* dtype;         // "bfloat16", ...
  void* q;
  void* k;
  void* v;
};

struct AttentionBenchCase {
  const char* name;
  std::int64_t num_parts;
  const AttentionBenchPart* parts;
  // A cudaStream_t: what a peer launches must go there. Null: there is no GPU, and the tensors are
  // the host's.
  void* stream;
};

enum AttentionBenchAnswer : int {
  kAttentionBenchOk = 0,
  kAttentionBenchAbsent = 1,  // the peer does not have such a case
  kAttentionBenchFailed = 2,
};

// Functions answer an AttentionBenchAnswer. `token` tells the cases apart that a peer has prepared
// at one time.
struct AttentionBenchPeer {
  const char* name;
  // Makes ready for a case. `text`, null-terminated, receives what will run, or why it cannot.
  int (*prepare)(std::int64_t token, const AttentionBenchCase* bench_case, char* text,
                 std::int64_t text_bytes);
  // Computes it, without waiting.
  int (*launch)(std::int64_t token);
  // Writes the part's output of the last launch to o, in the order of the stream.
  int (*output)(std::int64_t token, std::int64_t part, void* o);
  // Releases what `prepare` made; not called for a case that it did not prepare.
  void (*close)(std::int64_t token);
};

// Runs the benchmark with the options of attention-bench-cuda, argv[0] being the program. The
// result is its exit status. One at a time.
int AttentionBenchMain(int argc, const char* const* argv, const AttentionBenchPeer* peers,
                       int num_peers);

}  // extern "C"
