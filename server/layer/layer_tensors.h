// The tensors of a layer on their way in: plain bytes, checked against its spec.
//
// Thread-safety: none.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "server/domain/layer_spec.h"

namespace attention::server {

// SHA-256, 32 bytes.
std::string Sha256(const std::vector<absl::string_view>& pieces);

// Bytes of each tensor, row-major, in the spec's dtype; empty: not there.
class LayerTensors {
 public:
  // `spec` must be valid.
  explicit LayerTensors(const LayerSpec& spec) : spec_(spec) {}

  const LayerSpec& spec() const { return spec_; }
  bool has(LayerTensor tensor) const { return is_there_[static_cast<int>(tensor)]; }
  const std::string& bytes(LayerTensor tensor) const { return bytes_[static_cast<int>(tensor)]; }

  // Begins a tensor with its first bytes. INVALID_ARGUMENT when the one before is not complete, it
  // was there already, or dtype or shape are not the spec's.
  absl::Status Begin(LayerTensor tensor, DType dtype, const std::vector<std::int64_t>& shape,
                     absl::string_view bytes);
  // The next bytes of the tensor begun last. INVALID_ARGUMENT when there is none or they are too
  // many.
  absl::Status Append(absl::string_view bytes);

  // Checks that every tensor but the biases is there, and that the last one is complete.
  absl::Status CheckComplete() const;

  // The hash of the bytes of all tensors, in the order of LayerTensor.
  std::string Hash() const;

  // A whole tensor, of the right size.
  void Set(LayerTensor tensor, std::string bytes);

 private:
  std::int64_t SizeOf(LayerTensor tensor) const;
  absl::Status CheckLast() const;

  LayerSpec spec_;
  std::array<std::string, kNumLayerTensors> bytes_;
  std::array<bool, kNumLayerTensors> is_there_ = {};
  std::optional<LayerTensor> last_;  // begun last
};

}  // namespace attention::server
