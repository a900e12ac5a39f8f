#include "server/domain/cache_shape.h"

#include <algorithm>

namespace attention::server {

bool CacheShape::has_windows() const {
  return std::any_of(layers_.begin(), layers_.end(),
                     [](const LayerShape& layer) { return layer.has_window(); });
}

bool CacheShape::operator==(const CacheShape& other) const {
  if (num_layers_ != other.num_layers_) return false;
  if (is_uniform_ && other.is_uniform_) return layers_ == other.layers_;
  for (int i = 0; i < num_layers_; ++i) {
    if (layer(i) != other.layer(i)) return false;
  }
  return true;
}

}  // namespace attention::server
