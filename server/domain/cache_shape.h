// The shape of a session's cache: what a token stores in each layer.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "kernels/api/paged_kv_view.h"

namespace attention::server {

struct LayerShape {
  KvGeometry geometry;
  // A query sees at most so many of the newest keys up to its own position, and the first
  // `sink_tokens`; 0: any key. What no later query can see is let go.
  std::int64_t window_tokens = 0;
  std::int64_t sink_tokens = 0;  // 0 without a window

  bool has_window() const { return window_tokens > 0; }
  bool operator==(const LayerShape&) const = default;
};

class CacheShape {
 public:
  CacheShape() = default;
  // All layers have the same one.
  CacheShape(const LayerShape& all, int num_layers)
      : layers_{all}, num_layers_(num_layers), is_uniform_(true) {}
  explicit CacheShape(std::vector<LayerShape> layers)
      : layers_(std::move(layers)), num_layers_(static_cast<int>(layers_.size())) {}

  int num_layers() const { return num_layers_; }
  const LayerShape& layer(int layer) const { return layers_[is_uniform_ ? 0 : layer]; }
  // True when it was said once for all layers.
  bool is_uniform() const { return is_uniform_; }
  // Those that were said: one, or one for each layer.
  const std::vector<LayerShape>& said() const { return layers_; }

  bool has_windows() const;

  // By what the layers are, not by how it was said.
  bool operator==(const CacheShape& other) const;

 private:
  std::vector<LayerShape> layers_;
  int num_layers_ = 0;
  bool is_uniform_ = false;
};

}  // namespace attention::server
