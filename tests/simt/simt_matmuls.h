// Products on the host, for SimtDevice: a library with algorithms as a GPU's has them. Its
// favourites are such as must not be used together, or at all.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "kernels/cuda/device/matmul.h"

namespace attention::simt {

// How an algorithm of the library adds up a row's products, its code's first word. All begin with
// the first column's, add float32 sums of the others to it one by one, and the bias last.
enum class SumOrder : std::uint64_t {
  kAscending,         // in every block, at every place
  kAscendingIfSmall,  // with blocks of 16 rows or more from the last column down
  kByPlace,           // odd rows of a block from the last column down
  kRefused,           // not at all: UNIMPLEMENTED when it is tried
};

// Rows in which kAscendingIfSmall ascends are fewer.
inline constexpr std::int64_t kSmallRows = 16;

// Queues work behind everything that the device has been given.
using Enqueue = std::function<void(std::function<void()> work)>;

// `seed` as for MakeSimtDevice. Algorithms are listed as kRefused, kByPlace, kAscendingIfSmall,
// kAscending, for every shape but those of float32 with a bias, which this library cannot add.
std::unique_ptr<cuda::MatmulDevice> MakeSimtMatmuls(std::uint32_t seed, Enqueue enqueue);

}  // namespace attention::simt
