// attention-bench-cuda: how fast the CUDA kernels are, in the GPU's own time, and how near to what
// it can do. peers.py runs the same with others beside them.
#include "tests/benchmark/cuda/bench_main.h"

int main(int argc, char** argv) { return attention::bench::BenchMain(argc, argv, {}); }
