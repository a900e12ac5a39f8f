// The cache that a step works on, as far as a decoder needs to know it.
#pragma once

#include <cstdint>
#include <memory>

#include "server/domain/cache_shape.h"

namespace attention::server {

class KvCache;

struct StepTarget {
  std::shared_ptr<KvCache> cache;
  int device = 0;
  LayerShape shape;  // of the step's layer, if there is one
  int num_layers = 0;
  // The most tokens that the step's layer can hold before the step; 0 where there is no such layer.
  std::int64_t length = 0;
  std::uint64_t writer = 0;  // of the handle
};

}  // namespace attention::server
