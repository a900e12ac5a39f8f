#include "kernels/cuda/plugin/cublaslt_products.h"

#include <array>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/projection/matmul_choice.h"

namespace attention::cuda {
namespace {

// Split sums come first for few rows, and are left out: enough to leave some of the others.
constexpr int kMaxHeuristics = 2 * kMaxCandidates;
// Alignment of operands and products, as MatmulArguments has them.
constexpr std::uint32_t kAlignment = 256;

static_assert(sizeof(cublasLtMatmulAlgo_t) == sizeof(MatmulAlgorithm::code));

cudaDataType_t TypeOf(DType dtype) {
  return dtype == DType::kFloat16    ? CUDA_R_16F
         : dtype == DType::kBFloat16 ? CUDA_R_16BF
                                     : CUDA_R_32F;
}

// The library's matrices are stored by columns. Its D [out_features, rows] is our product, its
// op(A) our b as it lies in memory, transposed back, and its B our a.
class Description {
 public:
  explicit Description(const CublasLt& library) : library_(library) {}
  ~Description() {
    for (cublasLtMatrixLayout_t layout : {a_, b_, d_}) {
      if (layout != nullptr) library_.MatrixLayoutDestroy(layout);
    }
    if (operation_ != nullptr) library_.MatmulDescDestroy(operation_);
  }
  Description(const Description&) = delete;
  Description& operator=(const Description&) = delete;

  cublasStatus_t Make(const MatmulShape& shape, const float* bias) {
    // Pedantic float32 takes no tensor cores: they would round operands to TF32.
    const cublasComputeType_t compute =
        shape.dtype == DType::kFloat32 ? CUBLAS_COMPUTE_32F_PEDANTIC : CUBLAS_COMPUTE_32F;
    const cublasOperation_t transposed = CUBLAS_OP_T, plain = CUBLAS_OP_N;
    const cublasLtEpilogue_t epilogue =
        shape.has_bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT;
    const cudaDataType_t type = TypeOf(shape.dtype);
    Check(library_.MatmulDescCreate(&operation_, compute, CUDA_R_32F));
    Set(CUBLASLT_MATMUL_DESC_TRANSA, transposed);
    Set(CUBLASLT_MATMUL_DESC_TRANSB, plain);
    Set(CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue);
    if (shape.has_bias) Set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
    AddLayout(&a_, type, shape.in_features, shape.out_features);
    AddLayout(&b_, type, shape.in_features, shape.rows);
    AddLayout(&d_, CUDA_R_32F, shape.out_features, shape.rows);
    return status_;
  }

  cublasLtMatmulDesc_t operation() const { return operation_; }
  cublasLtMatrixLayout_t a() const { return a_; }
  cublasLtMatrixLayout_t b() const { return b_; }
  cublasLtMatrixLayout_t d() const { return d_; }

 private:
  void Check(cublasStatus_t status) {
    if (status_ == CUBLAS_STATUS_SUCCESS) status_ = status;
  }
  template <typename Value>
  void Set(cublasLtMatmulDescAttributes_t attribute, const Value& value) {
    if (status_ != CUBLAS_STATUS_SUCCESS) return;
    Check(library_.MatmulDescSetAttribute(operation_, attribute, &value, sizeof(value)));
  }
  void AddLayout(cublasLtMatrixLayout_t* layout, cudaDataType_t type, std::int64_t rows,
                 std::int64_t columns) {
    if (status_ != CUBLAS_STATUS_SUCCESS) return;
    Check(library_.MatrixLayoutCreate(layout, type, rows, columns, /*ld=*/rows));
  }

  const CublasLt& library_;
  cublasStatus_t status_ = CUBLAS_STATUS_SUCCESS;
  cublasLtMatmulDesc_t operation_ = nullptr;
  cublasLtMatrixLayout_t a_ = nullptr, b_ = nullptr, d_ = nullptr;
};

class Preference {
 public:
  explicit Preference(const CublasLt& library) : library_(library) {}
  ~Preference() {
    if (preference_ != nullptr) library_.MatmulPreferenceDestroy(preference_);
  }
  Preference(const Preference&) = delete;
  Preference& operator=(const Preference&) = delete;

  cublasStatus_t Make() {
    status_ = library_.MatmulPreferenceCreate(&preference_);
    const std::uint32_t no_reduction = CUBLASLT_REDUCTION_SCHEME_NONE;
    Set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, std::uint64_t{kMaxMatmulWorkspace});
    Set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, no_reduction);
    for (const auto attribute :
         {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
          CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES}) {
      Set(attribute, kAlignment);
    }
    return status_;
  }

  cublasLtMatmulPreference_t get() const { return preference_; }

 private:
  template <typename Value>
  void Set(cublasLtMatmulPreferenceAttributes_t attribute, const Value& value) {
    if (status_ != CUBLAS_STATUS_SUCCESS) return;
    status_ = library_.MatmulPreferenceSetAttribute(preference_, attribute, &value, sizeof(value));
  }

  const CublasLt& library_;
  cublasStatus_t status_ = CUBLAS_STATUS_SUCCESS;
  cublasLtMatmulPreference_t preference_ = nullptr;
};

}  // namespace

absl::StatusOr<std::unique_ptr<CublasLtProducts>> CublasLtProducts::Make(const CublasLt& library,
                                                                         MemoryAllocator& memory,
                                                                         cudaStream_t stream) {
  std::unique_ptr<CublasLtProducts> products(new CublasLtProducts(library, memory, stream));
  const cublasStatus_t status = library.Create(&products->handle_);
  if (status == CUBLAS_STATUS_SUCCESS) return products;
  products->handle_ = nullptr;
  return absl::UnavailableError(
      absl::StrCat("layers need cuBLASLt, which does not start: ", library.GetStatusName(status)));
}

CublasLtProducts::~CublasLtProducts() {
  if (handle_ != nullptr) library_.Destroy(handle_);
}

absl::Status CublasLtProducts::ToStatus(cublasStatus_t status, const char* what) const {
  if (status == CUBLAS_STATUS_SUCCESS) return absl::OkStatus();
  const std::string message =
      absl::StrCat("cuBLASLt: ", what, ": ", library_.GetStatusName(status));
  switch (status) {
    case CUBLAS_STATUS_ALLOC_FAILED:
      return absl::ResourceExhaustedError(message);
    case CUBLAS_STATUS_INVALID_VALUE:
    case CUBLAS_STATUS_ARCH_MISMATCH:
    case CUBLAS_STATUS_NOT_SUPPORTED:
      return absl::UnimplementedError(message);
    default:
      return absl::InternalError(message);
  }
}

bool CublasLtProducts::IsSplit(const cublasLtMatmulAlgo_t& algorithm) const {
  std::int32_t splits = 0;
  std::uint32_t scheme = CUBLASLT_REDUCTION_SCHEME_NONE;
  std::size_t written = 0;
  const auto read = [&](cublasLtMatmulAlgoConfigAttributes_t attribute, auto* value) {
    return library_.MatmulAlgoConfigGetAttribute(&algorithm, attribute, value, sizeof(*value),
                                                 &written) == CUBLAS_STATUS_SUCCESS;
  };
  return (read(CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &splits) && splits != 0 && splits != 1) ||
         (read(CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, &scheme) &&
          scheme != CUBLASLT_REDUCTION_SCHEME_NONE);
}

absl::StatusOr<std::vector<MatmulAlgorithm>> CublasLtProducts::Algorithms(
    const MatmulShape& shape) {
  Description description(library_);
  Preference preference(library_);
  // Which bias it is does not matter, but that there is one.
  cublasStatus_t status = description.Make(shape, reinterpret_cast<const float*>(kAlignment));
  if (status == CUBLAS_STATUS_SUCCESS) status = preference.Make();
  if (status != CUBLAS_STATUS_SUCCESS) return ToStatus(status, "describing a product");
  std::array<cublasLtMatmulHeuristicResult_t, kMaxHeuristics> results = {};
  int count = 0;
  status = library_.MatmulAlgoGetHeuristic(
      handle_, description.operation(), description.a(), description.b(), description.d(),
      description.d(), preference.get(), kMaxHeuristics, results.data(), &count);
  std::vector<MatmulAlgorithm> algorithms;
  if (status == CUBLAS_STATUS_NOT_SUPPORTED) return algorithms;
  if (status != CUBLAS_STATUS_SUCCESS) return ToStatus(status, "looking for an algorithm");
  for (int i = 0; i < count; ++i) {
    if (results[i].state != CUBLAS_STATUS_SUCCESS || IsSplit(results[i].algo)) continue;
    MatmulAlgorithm& algorithm = algorithms.emplace_back();
    std::memcpy(algorithm.code.data(), &results[i].algo, sizeof(results[i].algo));
    algorithm.workspace_bytes = results[i].workspaceSize;
  }
  return algorithms;
}

absl::Status CublasLtProducts::Multiply(const MatmulShape& shape, const MatmulAlgorithm& algorithm,
                                        const MatmulArguments& arguments) {
  // Once and for all: what grows later would have to wait for the products under way.
  if (algorithm.workspace_bytes > 0) {
    if (absl::Status status = workspace_.Reserve(kMaxMatmulWorkspace); !status.ok()) return status;
  }
  Description description(library_);
  cublasStatus_t status = description.Make(shape, arguments.bias);
  if (status != CUBLAS_STATUS_SUCCESS) return ToStatus(status, "describing a product");
  cublasLtMatmulAlgo_t code;
  std::memcpy(&code, algorithm.code.data(), sizeof(code));
  const float one = 1.0f, zero = 0.0f;
  status = library_.Matmul(handle_, description.operation(), &one, arguments.b, description.a(),
                           arguments.a, description.b(), &zero, arguments.product, description.d(),
                           arguments.product, description.d(), &code, workspace_.data(),
                           algorithm.workspace_bytes, stream_);
  return ToStatus(status, "multiplying");
}

}  // namespace attention::cuda
