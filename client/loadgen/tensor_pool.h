// The data of all requests, made once: an endless ring of random elements, of which each tensor is
// a window at an offset of its own. So every request carries fresh data, at the cost of a random
// number, and any tensor can be told again from its offset. Immutable after construction, so
// thread-safe.
#pragma once

#include <cstdint>
#include <vector>

#include "attention/client/tensor.h"
#include "kernels/api/dtype.h"

namespace attention::loadgen {

client::DType ToClientDType(DType dtype);

class TensorPool {
 public:
  // Elements before the data repeats. Prime, so that rows of no width repeat in step with it.
  static constexpr std::int64_t kPeriod = 4194301;
  // Elements are uniform in [-kMaxMagnitude, kMaxMagnitude], the square root of 3, which makes
  // their variance 1: scores of q and k then have variance 1 too, and softmax is neither flat nor
  // spiked.
  static constexpr double kMaxMagnitude = 1.7320508;

  // `max_elements`: of the largest tensor that will be asked for.
  TensorPool(DType dtype, std::int64_t max_elements, std::uint64_t seed);

  DType dtype() const { return dtype_; }
  // Offsets wrap: any value from 0 up is valid.
  const void* At(std::int64_t offset) const;
  // The elements [shape] from `offset` on.
  client::TensorView View(std::int64_t offset, client::Shape shape) const;
  // `rows` rows of `row_elements`, gathered: also more than max_elements.
  std::vector<std::uint8_t> Gather(std::int64_t offset, std::int64_t num_elements) const;

 private:
  DType dtype_;
  // One period, then the beginning again, so that a window that starts late is still contiguous.
  std::vector<std::uint8_t> bytes_;
};

}  // namespace attention::loadgen
