// The functions that peers.py calls by ctypes. They return null or a negative number on failure and
// leave the reason in PeersError. One thread at a time.
//
// Tensors are dense and belong to the caller, who keeps them until the case is destroyed.
#pragma once

#include <cstdint>

extern "C" {

// One shape of attention-bench (tests/benchmark/bench_case.cc).
struct PeersShape {
  const char* name;
  std::int64_t batch_size;
  std::int64_t num_q_heads;
  std::int64_t num_kv_heads;
  std::int64_t q_len;
  std::int64_t kv_len;
  std::int64_t head_dim;
  std::int64_t is_causal;
  std::int64_t window_left;  // negative: unbounded
  std::int64_t is_memory_bound;
  double flops;  // of the visible pairs only, all sequences
};

struct PeersCeilings {
  double flops_per_second;
  double bf16_flops_per_second;  // 0: no such unit
  double bytes_per_second;
};

struct PeersTensors {
  const void* q;
  const void* k;
  const void* v;
  void* o;
  std::int64_t is_bfloat16;  // else float32
};

const char* PeersError();

int PeersNumShapes();
int PeersGetShape(int index, PeersShape* shape);

// Measures for about 0.3 s.
int PeersMeasureCeilings(int num_threads, PeersCeilings* ceilings);
// "device, instruction set" of the kernels; valid until the next call.
const char* PeersDevice();

// Ours. q and o [batch_size, q_len, num_q_heads, head_dim], k and v [batch_size, kv_len,
// num_kv_heads, head_dim]. With num_copies = 0 the kernels read k and v; else they read pages that
// hold num_copies times their contents, each run the next copy.
void* PeersKernelsCreate(const PeersShape* shape, const PeersTensors* tensors, int num_copies,
                         int num_threads);
int PeersKernelsRun(void* kernels_case);
void PeersKernelsDestroy(void* kernels_case);

// oneDNN, unfused; not in a library built without it. q and o [batch_size, num_q_heads, q_len,
// head_dim], k and v [num_copies, batch_size, num_kv_heads, kv_len, head_dim]; each run reads the
// next copy. Nothing is masked.
const char* PeersOneDnnVersion();
void* PeersOneDnnCreate(const PeersShape* shape, const PeersTensors* tensors, int num_copies);
int PeersOneDnnRun(void* onednn_case);
void PeersOneDnnDestroy(void* onednn_case);

}  // extern "C"

namespace attention::bench {

// Sets what PeersError returns.
void SetPeersError(const char* message);

}  // namespace attention::bench
