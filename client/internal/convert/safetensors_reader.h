// A .safetensors file in the SDK's words.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "attention/client/tensor.h"
#include "proto/safetensors/safetensors_file.h"

namespace attention::client::internal {

class SafetensorsReader {
 public:
  static absl::StatusOr<SafetensorsReader> Open(const std::string& path);

  std::vector<std::string> names() const;
  absl::StatusOr<TensorView> Find(const std::string& name) const;

 private:
  explicit SafetensorsReader(std::shared_ptr<const safetensors::File> file)
      : file_(std::move(file)) {}
  std::shared_ptr<const safetensors::File> file_;
};

}  // namespace attention::client::internal
