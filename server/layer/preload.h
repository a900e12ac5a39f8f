// Layers that a server has from its start, from .safetensors files.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "server/base/interrupt.h"
#include "server/layer/layer_table.h"

namespace attention::server {

struct PreloadedLayer {
  std::vector<std::string> tenants;  // who may use it; empty: all
  std::string layer_id;
  LayerSpec spec;              // its dtype does not count
  std::optional<DType> dtype;  // that the tensors must have; absent: any
  std::string file;
  std::map<LayerTensor, std::string> tensors;  // names in the file
};

// Registers the layer. What is wrong with its file or its spec names the layer. Asks between its
// tensors whether to go on.
absl::Status Preload(const PreloadedLayer& layer, LayerTable& table,
                     const Interrupt& interrupt = nullptr);

}  // namespace attention::server
