#include "client/internal/convert/safetensors_reader.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "client/internal/base/status_macros.h"

namespace attention::client::internal {
namespace {

absl::StatusOr<DType> TypeOf(const std::string& name, const std::string& dtype) {
  if (dtype == "F32") return DType::kFloat32;
  if (dtype == "F16") return DType::kFloat16;
  if (dtype == "BF16") return DType::kBFloat16;
  return absl::InvalidArgumentError(
      absl::StrCat("the tensor '", name, "' is of ", dtype, ", expected F32, F16 or BF16"));
}

}  // namespace

absl::StatusOr<SafetensorsReader> SafetensorsReader::Open(const std::string& path) {
  ATTENTION_CLIENT_ASSIGN_OR_RETURN(std::shared_ptr<const safetensors::File> file,
                                    safetensors::File::Open(path));
  return SafetensorsReader(std::move(file));
}

std::vector<std::string> SafetensorsReader::names() const {
  std::vector<std::string> names;
  for (const auto& [name, tensor] : file_->tensors()) names.push_back(name);
  return names;
}

absl::StatusOr<TensorView> SafetensorsReader::Find(const std::string& name) const {
  ATTENTION_CLIENT_ASSIGN_OR_RETURN(const safetensors::FileTensor tensor, file_->Find(name));
  ATTENTION_CLIENT_ASSIGN_OR_RETURN(const DType dtype, TypeOf(name, tensor.dtype));
  return TensorView(tensor.bytes.data(), dtype, tensor.shape);
}

}  // namespace attention::client::internal
