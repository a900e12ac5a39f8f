// The calls that cuBLASLt gets, seen by a library that does on the host what NVIDIA's
// documentation says of them; and that the real one, where it is, has every function that is
// needed.
#include <gmock/gmock.h>

#include <cstring>
#include <map>
#include <set>

#include "kernels/cuda/plugin/cublaslt_products.h"
#include "tests/support/projection_problem.h"

// The library's opaque types, as the fake has them.
struct FakeLayout {
  cudaDataType type;
  std::int64_t rows, columns, ld;
};
struct FakeOperation {
  cublasComputeType_t compute;
  cudaDataType scale;
  std::map<int, std::vector<char>> attributes;

  template <typename Value>
  Value Get(cublasLtMatmulDescAttributes_t attribute, Value otherwise) const {
    const auto it = attributes.find(attribute);
    if (it == attributes.end()) return otherwise;
    EXPECT_EQ(it->second.size(), sizeof(Value));
    std::memcpy(&otherwise, it->second.data(), sizeof(Value));
    return otherwise;
  }
};

namespace attention::cuda {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;

// One of the algorithms that the fake's heuristics know.
struct FakeAlgorithm {
  std::int32_t splits = 1;
  std::uint32_t reduction = CUBLASLT_REDUCTION_SCHEME_NONE;
  cublasStatus_t state = CUBLAS_STATUS_SUCCESS;
  std::size_t workspace = 0;
  bool is_silent = false;  // about how it is configured
};

struct FakeState {
  std::vector<FakeAlgorithm> algorithms;
  std::map<int, std::uint64_t> preferences;
  std::set<void*> alive;
  cublasStatus_t create_status = CUBLAS_STATUS_SUCCESS;
  cublasStatus_t matmul_status = CUBLAS_STATUS_SUCCESS;
  cublasComputeType_t compute = CUBLAS_COMPUTE_16F;
  std::size_t workspace_bytes = 0;
  bool has_workspace = false;
};
FakeState* state = nullptr;

template <typename Fake, typename Handle>
void Create(Handle* handle, Fake* made) {
  *handle = reinterpret_cast<Handle>(made);
  state->alive.insert(made);
}
template <typename Fake, typename Handle>
cublasStatus_t Destroy(Handle handle) {
  EXPECT_EQ(state->alive.erase(reinterpret_cast<void*>(handle)), 1u);
  delete reinterpret_cast<Fake*>(handle);
  return CUBLAS_STATUS_SUCCESS;
}

float Load(const void* data, cudaDataType type, std::int64_t index) {
  return LoadElement(data,
                     type == CUDA_R_16F    ? DType::kFloat16
                     : type == CUDA_R_16BF ? DType::kBFloat16
                                           : DType::kFloat32,
                     index);
}

// D = alpha op(A) op(B) + beta C + bias, all by columns, the bias once for each row of D.
void MultiplyByColumns(const FakeOperation& operation, const void* a, const FakeLayout& a_layout,
                       const void* b, const FakeLayout& b_layout, float* d,
                       const FakeLayout& d_layout) {
  const bool is_a_transposed =
      operation.Get(CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_N) == CUBLAS_OP_T;
  ASSERT_EQ(operation.Get(CUBLASLT_MATMUL_DESC_TRANSB, CUBLAS_OP_N), CUBLAS_OP_N);
  const bool has_bias = operation.Get(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_DEFAULT) ==
                        CUBLASLT_EPILOGUE_BIAS;
  const auto* bias = operation.Get<const float*>(CUBLASLT_MATMUL_DESC_BIAS_POINTER, nullptr);
  const std::int64_t depth = is_a_transposed ? a_layout.rows : a_layout.columns;
  ASSERT_EQ(is_a_transposed ? a_layout.columns : a_layout.rows, d_layout.rows);
  ASSERT_EQ(b_layout.rows, depth);
  ASSERT_EQ(b_layout.columns, d_layout.columns);
  ASSERT_EQ(d_layout.type, CUDA_R_32F);
  for (std::int64_t column = 0; column < d_layout.columns; ++column) {
    for (std::int64_t row = 0; row < d_layout.rows; ++row) {
      float sum = 0;
      for (std::int64_t k = 0; k < depth; ++k) {
        const std::int64_t at = is_a_transposed ? k + row * a_layout.ld : row + k * a_layout.ld;
        sum += Load(a, a_layout.type, at) * Load(b, b_layout.type, k + column * b_layout.ld);
      }
      d[row + column * d_layout.ld] = has_bias ? sum + bias[row] : sum;
    }
  }
}

cublasStatus_t FakeMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t operation, const void* alpha,
                          const void* a, cublasLtMatrixLayout_t a_layout, const void* b,
                          cublasLtMatrixLayout_t b_layout, const void* beta, const void* c,
                          cublasLtMatrixLayout_t, void* d, cublasLtMatrixLayout_t d_layout,
                          const cublasLtMatmulAlgo_t*, void* workspace, std::size_t workspace_bytes,
                          cudaStream_t) {
  EXPECT_EQ(*static_cast<const float*>(alpha), 1.0f);
  EXPECT_EQ(*static_cast<const float*>(beta), 0.0f);
  EXPECT_EQ(c, d);
  const auto* fake = reinterpret_cast<const FakeOperation*>(operation);
  EXPECT_EQ(fake->scale, CUDA_R_32F);
  state->compute = fake->compute;
  state->workspace_bytes = workspace_bytes;
  state->has_workspace = workspace != nullptr;
  if (state->matmul_status == CUBLAS_STATUS_SUCCESS) {
    MultiplyByColumns(*fake, a, *reinterpret_cast<const FakeLayout*>(a_layout), b,
                      *reinterpret_cast<const FakeLayout*>(b_layout), static_cast<float*>(d),
                      *reinterpret_cast<const FakeLayout*>(d_layout));
  }
  return state->matmul_status;
}

cublasStatus_t FakeHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t, cublasLtMatrixLayout_t,
                             cublasLtMatrixLayout_t, cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
                             cublasLtMatmulPreference_t, int wanted,
                             cublasLtMatmulHeuristicResult_t results[], int* count) {
  *count = std::min(wanted, static_cast<int>(state->algorithms.size()));
  if (*count == 0) return CUBLAS_STATUS_NOT_SUPPORTED;
  for (int i = 0; i < *count; ++i) {
    results[i].algo.data[0] = static_cast<std::uint64_t>(i);
    results[i].workspaceSize = state->algorithms[i].workspace;
    results[i].state = state->algorithms[i].state;
  }
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t FakeConfig(const cublasLtMatmulAlgo_t* algorithm,
                          cublasLtMatmulAlgoConfigAttributes_t attribute, void* value,
                          std::size_t bytes, std::size_t* written) {
  EXPECT_EQ(bytes, 4u);
  const FakeAlgorithm& fake = state->algorithms[algorithm->data[0]];
  if (fake.is_silent) return CUBLAS_STATUS_NOT_SUPPORTED;
  *written = bytes;
  if (attribute == CUBLASLT_ALGO_CONFIG_SPLITK_NUM) {
    std::memcpy(value, &fake.splits, bytes);
  } else {
    EXPECT_EQ(attribute, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME);
    std::memcpy(value, &fake.reduction, bytes);
  }
  return CUBLAS_STATUS_SUCCESS;
}

CublasLt FakeLibrary() {
  CublasLt library;
  library.Create = [](cublasLtHandle_t* handle) {
    if (state->create_status == CUBLAS_STATUS_SUCCESS) ::attention::cuda::Create(handle, new int);
    return state->create_status;
  };
  library.Destroy = Destroy<int, cublasLtHandle_t>;
  library.GetStatusName = [](cublasStatus_t) { return "FAKE_STATUS"; };
  library.Matmul = FakeMatmul;
  library.MatrixLayoutCreate = [](cublasLtMatrixLayout_t* layout, cudaDataType type,
                                  std::uint64_t rows, std::uint64_t columns, std::int64_t ld) {
    ::attention::cuda::Create(layout, new FakeLayout{type, static_cast<std::int64_t>(rows),
                                                     static_cast<std::int64_t>(columns), ld});
    return CUBLAS_STATUS_SUCCESS;
  };
  library.MatrixLayoutDestroy = Destroy<FakeLayout, cublasLtMatrixLayout_t>;
  library.MatmulDescCreate = [](cublasLtMatmulDesc_t* operation, cublasComputeType_t compute,
                                cudaDataType scale) {
    ::attention::cuda::Create(operation, new FakeOperation{compute, scale, {}});
    return CUBLAS_STATUS_SUCCESS;
  };
  library.MatmulDescDestroy = Destroy<FakeOperation, cublasLtMatmulDesc_t>;
  library.MatmulDescSetAttribute = [](cublasLtMatmulDesc_t operation,
                                      cublasLtMatmulDescAttributes_t attribute, const void* value,
                                      std::size_t bytes) {
    const auto* data = static_cast<const char*>(value);
    reinterpret_cast<FakeOperation*>(operation)->attributes[attribute].assign(data, data + bytes);
    return CUBLAS_STATUS_SUCCESS;
  };
  library.MatmulPreferenceCreate = [](cublasLtMatmulPreference_t* preference) {
    ::attention::cuda::Create(preference, new int);
    return CUBLAS_STATUS_SUCCESS;
  };
  library.MatmulPreferenceDestroy = Destroy<int, cublasLtMatmulPreference_t>;
  library.MatmulPreferenceSetAttribute = [](cublasLtMatmulPreference_t,
                                            cublasLtMatmulPreferenceAttributes_t attribute,
                                            const void* value, std::size_t bytes) {
    std::memcpy(&state->preferences[attribute], value, bytes);
    return CUBLAS_STATUS_SUCCESS;
  };
  library.MatmulAlgoGetHeuristic = FakeHeuristic;
  library.MatmulAlgoConfigGetAttribute = FakeConfig;
  return library;
}

class HeapAllocator final : public MemoryAllocator {
 public:
  void* Allocate(std::size_t bytes) override {
    allocated_ += bytes;
    return ::operator new(bytes);
  }
  void Free(void* memory, std::size_t bytes) override {
    allocated_ -= bytes;
    ::operator delete(memory);
  }
  std::size_t allocated() const { return allocated_; }

 private:
  std::size_t allocated_ = 0;
};

class CublasLtTest : public ::testing::Test {
 protected:
  void SetUp() override {
    state = &state_;
    state_.algorithms = {{}};
    products_ = *CublasLtProducts::Make(library_, memory_, nullptr);
  }
  void TearDown() override {
    products_.reset();
    EXPECT_THAT(state_.alive, SizeIs(0));
    EXPECT_EQ(memory_.allocated(), 0u);
  }

  FakeState state_;
  const CublasLt library_ = FakeLibrary();
  HeapAllocator memory_;
  std::unique_ptr<CublasLtProducts> products_;
};

TEST_F(CublasLtTest, AProductIsRowsTimesWeightsPlusBias) {
  for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    const testing::Matrix a(16, 32, dtype, 1), b(48, 32, dtype, 2);
    const testing::Matrix bias(1, 48, DType::kFloat32, 3);
    std::vector<float> product(16 * 48);
    const MatmulShape shape{16, 32, 48, dtype};
    const auto algorithms = products_->Algorithms(shape);
    ASSERT_TRUE(algorithms.ok()) << algorithms.status();
    ASSERT_THAT(*algorithms, SizeIs(1));
    const absl::Status status =
        products_->Multiply(shape, algorithms->front(),
                            {a.bytes.data(), b.bytes.data(),
                             reinterpret_cast<const float*>(bias.bytes.data()), product.data()});
    ASSERT_TRUE(status.ok()) << status;
    std::vector<double> exact;
    const double tolerance = testing::ToleranceOf(a, b, bias, DType::kFloat32, &exact);
    for (std::size_t i = 0; i < exact.size(); ++i) ASSERT_NEAR(product[i], exact[i], tolerance);
    EXPECT_EQ(state_.compute,
              dtype == DType::kFloat32 ? CUBLAS_COMPUTE_32F_PEDANTIC : CUBLAS_COMPUTE_32F)
        << "float32 must not become TF32";
    EXPECT_FALSE(state_.has_workspace);
  }
}

TEST_F(CublasLtTest, AProductWithoutBiasIsThat) {
  const testing::Matrix a(16, 32, DType::kFloat32, 1), b(48, 32, DType::kFloat32, 2);
  const testing::Matrix zeros(1, 48, DType::kFloat32, 3, 0.0f);
  std::vector<float> product(16 * 48);
  const absl::Status status =
      products_->Multiply({16, 32, 48, DType::kFloat32, /*has_bias=*/false}, {},
                          {a.bytes.data(), b.bytes.data(), nullptr, product.data()});
  ASSERT_TRUE(status.ok()) << status;
  std::vector<double> exact;
  const double tolerance = testing::ToleranceOf(a, b, zeros, DType::kFloat32, &exact);
  for (std::size_t i = 0; i < exact.size(); ++i) ASSERT_NEAR(product[i], exact[i], tolerance);
}

TEST_F(CublasLtTest, SplitSumsAndWhatCannotRunAreLeftOut) {
  state_.algorithms = {{.splits = 4, .reduction = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE},
                       {.workspace = 7},
                       {.state = CUBLAS_STATUS_NOT_SUPPORTED},
                       {.splits = -1},
                       {.reduction = CUBLASLT_REDUCTION_SCHEME_INPLACE},
                       {.splits = 0},
                       {.splits = 4, .is_silent = true}};
  const auto algorithms = products_->Algorithms({16, 32, 48, DType::kBFloat16});
  ASSERT_TRUE(algorithms.ok()) << algorithms.status();
  EXPECT_THAT(*algorithms, ElementsAre(MatmulAlgorithm{{1}, 7}, MatmulAlgorithm{{5}, 0},
                                       MatmulAlgorithm{{6}, 0}))
      << "one that does not say how it sums is left to the probe";
  EXPECT_EQ(state_.preferences[CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK],
            std::uint64_t{CUBLASLT_REDUCTION_SCHEME_NONE});
  EXPECT_EQ(state_.preferences[CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES], kMaxMatmulWorkspace);
}

TEST_F(CublasLtTest, AShapeThatTheLibraryDoesNotKnowHasNoAlgorithms) {
  state_.algorithms.clear();
  const auto algorithms = products_->Algorithms({16, 32, 48, DType::kBFloat16});
  ASSERT_TRUE(algorithms.ok()) << algorithms.status();
  EXPECT_THAT(*algorithms, SizeIs(0));
}

TEST_F(CublasLtTest, AWorkspaceIsThereForAlgorithmsThatWantOne) {
  const std::vector<float> a(16 * 16), b(16 * 16), bias(16);
  std::vector<float> product(16 * 16);
  const MatmulArguments arguments{a.data(), b.data(), bias.data(), product.data()};
  ASSERT_TRUE(products_->Multiply({16, 16, 16, DType::kFloat32}, {{0}, 1000}, arguments).ok());
  EXPECT_TRUE(state_.has_workspace);
  EXPECT_EQ(state_.workspace_bytes, 1000u);
  EXPECT_EQ(memory_.allocated(), kMaxMatmulWorkspace);
}

TEST_F(CublasLtTest, ErrorsTellWhetherTheDeviceIsWell) {
  for (const auto& [status, code] :
       {std::pair{CUBLAS_STATUS_ALLOC_FAILED, absl::StatusCode::kResourceExhausted},
        {CUBLAS_STATUS_NOT_SUPPORTED, absl::StatusCode::kUnimplemented},
        {CUBLAS_STATUS_INVALID_VALUE, absl::StatusCode::kUnimplemented},
        {CUBLAS_STATUS_EXECUTION_FAILED, absl::StatusCode::kInternal}}) {
    state_.matmul_status = status;
    const absl::Status result = products_->Multiply({16, 16, 16, DType::kFloat32}, {}, {});
    EXPECT_EQ(result.code(), code);
    EXPECT_THAT(std::string(result.message()), HasSubstr("cuBLASLt: multiplying: FAKE_STATUS"));
  }
}

TEST_F(CublasLtTest, ALibraryThatDoesNotStartSaysWhy) {
  state_.create_status = CUBLAS_STATUS_NOT_INITIALIZED;
  const auto made = CublasLtProducts::Make(library_, memory_, nullptr);
  EXPECT_EQ(made.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(made.status().message()), HasSubstr("does not start: FAKE_STATUS"));
}

TEST(LoadCublasLtTest, TheLibraryHasWhatIsNeededOrTheReasonIsNamed) {
  const absl::StatusOr<CublasLt>& library = LoadCublasLt();
  if (!library.ok()) {
    EXPECT_THAT(std::string(library.status().message()), HasSubstr("cublasLt"));
    GTEST_SKIP() << library.status();
  }
  EXPECT_THAT(std::string(library->GetStatusName(CUBLAS_STATUS_SUCCESS)), HasSubstr("SUCCESS"));
}

}  // namespace
}  // namespace attention::cuda
