#include "kernels/api/attention_params.h"

#include <algorithm>
#include <cmath>

namespace attention {

float DefaultSoftmaxScale(int head_dim_qk) {
  return static_cast<float>(1.0 / std::sqrt(static_cast<double>(head_dim_qk)));
}

}  // namespace attention
