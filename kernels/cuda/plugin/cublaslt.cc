#include "kernels/cuda/plugin/cublaslt.h"

#include <dlfcn.h>

#include <string>

#include "absl/strings/str_cat.h"

namespace attention::cuda {
namespace {

absl::StatusOr<CublasLt> Load() {
  const std::string name = absl::StrCat("libcublasLt.so.", CUBLAS_VER_MAJOR);
  void* library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    return absl::UnavailableError(
        absl::StrCat("layers need cuBLASLt, which cannot be loaded: ", dlerror()));
  }
  CublasLt functions;
  const char* missing = nullptr;
  const auto find = [&](auto& function, const char* symbol) {
    function = reinterpret_cast<std::decay_t<decltype(function)>>(dlsym(library, symbol));
    if (function == nullptr) missing = symbol;
  };
  find(functions.Create, "cublasLtCreate");
  find(functions.Destroy, "cublasLtDestroy");
  find(functions.GetStatusName, "cublasLtGetStatusName");
  find(functions.Matmul, "cublasLtMatmul");
  find(functions.MatrixLayoutCreate, "cublasLtMatrixLayoutCreate");
  find(functions.MatrixLayoutDestroy, "cublasLtMatrixLayoutDestroy");
  find(functions.MatmulDescCreate, "cublasLtMatmulDescCreate");
  find(functions.MatmulDescDestroy, "cublasLtMatmulDescDestroy");
  find(functions.MatmulDescSetAttribute, "cublasLtMatmulDescSetAttribute");
  find(functions.MatmulPreferenceCreate, "cublasLtMatmulPreferenceCreate");
  find(functions.MatmulPreferenceDestroy, "cublasLtMatmulPreferenceDestroy");
  find(functions.MatmulPreferenceSetAttribute, "cublasLtMatmulPreferenceSetAttribute");
  find(functions.MatmulAlgoGetHeuristic, "cublasLtMatmulAlgoGetHeuristic");
  find(functions.MatmulAlgoConfigGetAttribute, "cublasLtMatmulAlgoConfigGetAttribute");
  if (missing == nullptr) return functions;
  return absl::UnavailableError(
      absl::StrCat("layers need cuBLASLt, but ", name, " has no ", missing));
}

}  // namespace

const absl::StatusOr<CublasLt>& LoadCublasLt() {
  static const auto* functions = new absl::StatusOr<CublasLt>(Load());
  return *functions;
}

}  // namespace attention::cuda
