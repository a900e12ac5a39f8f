#include "server/layer/preload.h"

#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/safetensors/safetensors_file.h"
#include "server/base/client_text.h"
#include "server/base/status_macros.h"

namespace attention::server {
namespace {

absl::StatusOr<DType> TypeOf(const std::string& name, const std::string& dtype) {
  if (dtype == "F32") return DType::kFloat32;
  if (dtype == "F16") return DType::kFloat16;
  if (dtype == "BF16") return DType::kBFloat16;
  return absl::InvalidArgumentError(absl::StrCat("the tensor ", Quoted(name), " is of ",
                                                 Quoted(dtype), ", expected F32, F16 or BF16"));
}

absl::Status Load(const PreloadedLayer& layer, LayerTable& table, const Interrupt& interrupt) {
  ATTENTION_ASSIGN_OR_RETURN(const std::shared_ptr<const safetensors::File> file,
                             safetensors::File::Open(layer.file));
  LayerTable::NewLayer made{/*tenant=*/"", layer.layer_id, layer.spec, layer.tenants};
  std::optional<LayerTensors> tensors;
  LayerTable::Reservation reservation;
  for (const auto& [tensor, name] : layer.tensors) {
    ATTENTION_RETURN_IF_ERROR(Ask(interrupt));
    ATTENTION_ASSIGN_OR_RETURN(const safetensors::FileTensor found, file->Find(name));
    ATTENTION_ASSIGN_OR_RETURN(const DType dtype, TypeOf(name, found.dtype));
    if (!tensors) {
      made.spec.dtype = layer.dtype.value_or(dtype);
      ATTENTION_ASSIGN_OR_RETURN(reservation, table.Reserve(made));
      tensors.emplace(made.spec);
    }
    ATTENTION_RETURN_IF_ERROR(tensors->Begin(tensor, dtype, found.shape, found.bytes));
  }
  if (!tensors) return absl::InvalidArgumentError("tensors are missing, expected w_q to w_o");
  ATTENTION_RETURN_IF_ERROR(Ask(interrupt));
  return table.Create(made, *tensors, std::move(reservation)).status();
}

}  // namespace

absl::Status Preload(const PreloadedLayer& layer, LayerTable& table, const Interrupt& interrupt) {
  const absl::Status status = Load(layer, table, interrupt);
  if (status.ok()) return status;
  return absl::Status(status.code(),
                      absl::StrCat("layer ", Quoted(layer.layer_id), ": ", status.message()));
}

}  // namespace attention::server
