// Weights from .safetensors files.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "attention/client/layer_types.h"
#include "attention/client/tensor.h"

namespace attention::client {

// Names of a layer's tensors in a file; an empty bias is absent.
struct LayerTensorNames {
  std::string w_q = {};
  std::string w_k = {};
  std::string w_v = {};
  std::string w_o = {};
  std::string b_q = {};
  std::string b_k = {};
  std::string b_v = {};
  std::string b_o = {};
};

// An open file, mapped into memory. Copies share it. Thread-safe.
class Safetensors {
 public:
  // NOT_FOUND: cannot be opened; INVALID_ARGUMENT: is no such file.
  static absl::StatusOr<Safetensors> Open(const std::string& path);

  std::vector<std::string> names() const;

  // A view of a tensor, valid as long as a copy of this lives. NOT_FOUND; INVALID_ARGUMENT for a
  // type that is not float32, float16 or bfloat16.
  absl::StatusOr<TensorView> Find(const std::string& name) const;
  // The tensors of a layer, likewise.
  absl::StatusOr<LayerWeights> FindLayer(const LayerTensorNames& names) const;

 private:
  struct Impl;
  explicit Safetensors(std::shared_ptr<const Impl> impl) : impl_(std::move(impl)) {}
  std::shared_ptr<const Impl> impl_;
};

}  // namespace attention::client
