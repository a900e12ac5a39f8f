// A peer behind the functions of bench_c.h.
#pragma once

#include <cstdint>
#include <memory>

#include "tests/benchmark/cuda/bench_c.h"
#include "tests/benchmark/cuda/contender.h"

namespace attention::bench {

// UNIMPLEMENTED: the peer does not have the case. Other errors: it failed, and says why. The
// tensors must have been uploaded, and outlive the contender, as the peer must.
absl::StatusOr<std::unique_ptr<Contender>> MakePeer(const AttentionBenchPeer& peer,
                                                    std::int64_t token, const Case& bench_case,
                                                    const CaseTensors& tensors,
                                                    cuda::Device& device, void* stream);

}  // namespace attention::bench
