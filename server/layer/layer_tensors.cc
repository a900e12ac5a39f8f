#include "server/layer/layer_tensors.h"

#include <openssl/evp.h>

#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "server/base/status_macros.h"

namespace attention::server {

std::string Sha256(const std::vector<absl::string_view>& pieces) {
  const std::unique_ptr<EVP_MD_CTX, void (*)(EVP_MD_CTX*)> context(EVP_MD_CTX_new(),
                                                                   EVP_MD_CTX_free);
  EVP_DigestInit_ex(context.get(), EVP_sha256(), nullptr);
  for (absl::string_view piece : pieces) {
    EVP_DigestUpdate(context.get(), piece.data(), piece.size());
  }
  std::string digest(32, '\0');
  EVP_DigestFinal_ex(context.get(), reinterpret_cast<unsigned char*>(digest.data()), nullptr);
  return digest;
}

std::int64_t LayerTensors::SizeOf(LayerTensor tensor) const {
  return ShapeOf(spec_, tensor).elements() * static_cast<std::int64_t>(DTypeBytes(spec_.dtype));
}

absl::Status LayerTensors::CheckLast() const {
  if (!last_) return absl::OkStatus();
  const auto size = static_cast<std::int64_t>(bytes(*last_).size());
  if (size == SizeOf(*last_)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(LayerTensorName(*last_), " has ", size, " bytes, expected ", SizeOf(*last_)));
}

absl::Status LayerTensors::Begin(LayerTensor tensor, DType dtype,
                                 const std::vector<std::int64_t>& shape, absl::string_view bytes) {
  ATTENTION_RETURN_IF_ERROR(CheckLast());
  const absl::string_view name = LayerTensorName(tensor);
  if (has(tensor)) {
    return absl::InvalidArgumentError(absl::StrCat(name, " was sent twice, expected once"));
  }
  if (dtype != spec_.dtype) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, ".dtype is ", std::string(DTypeName(dtype)),
                     ", expected the layer's dtype (", std::string(DTypeName(spec_.dtype)), ")"));
  }
  const LayerTensorShape expected = ShapeOf(spec_, tensor);
  std::vector<std::int64_t> expected_shape = {expected.out_features};
  if (!IsBias(tensor)) expected_shape.push_back(expected.in_features);
  if (shape != expected_shape) {
    return absl::InvalidArgumentError(absl::StrCat(name, ".shape is [", absl::StrJoin(shape, ", "),
                                                   "], expected [",
                                                   absl::StrJoin(expected_shape, ", "), "]"));
  }
  is_there_[static_cast<int>(tensor)] = true;
  bytes_[static_cast<int>(tensor)].reserve(static_cast<std::size_t>(SizeOf(tensor)));
  last_ = tensor;
  return Append(bytes);
}

absl::Status LayerTensors::Append(absl::string_view bytes) {
  if (!last_) {
    return absl::InvalidArgumentError("chunk came first, expected the tensor that it belongs to");
  }
  std::string& destination = bytes_[static_cast<int>(*last_)];
  const std::int64_t size = static_cast<std::int64_t>(destination.size() + bytes.size());
  if (size > SizeOf(*last_)) {
    return absl::InvalidArgumentError(absl::StrCat(LayerTensorName(*last_), " has ", size,
                                                   " bytes or more, expected ", SizeOf(*last_)));
  }
  destination.append(bytes.data(), bytes.size());
  return absl::OkStatus();
}

absl::Status LayerTensors::CheckComplete() const {
  ATTENTION_RETURN_IF_ERROR(CheckLast());
  for (int i = 0; i < kNumLayerTensors; ++i) {
    const auto tensor = static_cast<LayerTensor>(i);
    if (has(tensor) || IsBias(tensor)) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(LayerTensorName(tensor), " is missing, expected a tensor"));
  }
  return absl::OkStatus();
}

std::string LayerTensors::Hash() const { return Sha256({bytes_.begin(), bytes_.end()}); }

void LayerTensors::Set(LayerTensor tensor, std::string bytes) {
  is_there_[static_cast<int>(tensor)] = true;
  bytes_[static_cast<int>(tensor)] = std::move(bytes);
}

}  // namespace attention::server
