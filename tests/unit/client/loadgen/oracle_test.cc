#include "client/loadgen/oracle.h"

#include <gmock/gmock.h>

#include <limits>
#include <memory>

#include "attention/client/client.h"
#include "client/loadgen/workload.h"
#include "tests/unit/client/loadgen/fake_server.h"
#include "tests/unit/client/loadgen/test_options.h"

namespace attention::loadgen {
namespace {

using ::testing::HasSubstr;

// The answer of a correct server to the first request of a workload.
struct Exchange {
  explicit Exchange(const Options& options) : pool(options.shape.dtype, LargestTensor(options), 1) {
    const auto workload = MakeWorkload(
        options, pool, std::make_shared<client::Client>(std::make_shared<FakeServer>()));
    workload->Prepare(0, {}, [](const absl::Status& status) { EXPECT_TRUE(status.ok()); });
    workload->Send(0, {}, [this](absl::StatusOr<Answer> result) { answer = *std::move(result); });
  }

  absl::Status Check(const std::vector<float>& values, client::Shape shape) const {
    const auto output = client::Tensor::FromFloats(values, std::move(shape), answer.output.dtype());
    return CheckAnswer(pool, answer.request, output).status;
  }

  TensorPool pool;
  Answer answer;
};

Options WithDType(DType dtype) {
  Options options = SmallOptions();
  options.shape.dtype = dtype;
  options.shape.kv_len = 200;
  return options;
}

TEST(OracleTest, AcceptsCorrectAnswersOfEveryType) {
  for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    for (const std::int64_t window : {0, 4}) {
      for (const bool is_causal : {true, false}) {
        Options options = WithDType(dtype);
        options.shape.window = window;
        options.shape.is_causal = is_causal;
        const Exchange exchange(options);
        const CheckedAnswer checked =
            CheckAnswer(exchange.pool, exchange.answer.request, exchange.answer.output);
        EXPECT_TRUE(checked.status.ok()) << checked.status;
        EXPECT_EQ(checked.rows_checked, 3);
      }
    }
  }
}

// The server may lose what the cache's type cannot hold, and nothing else.
TEST(OracleTest, ExpectsWhatTheSessionsCacheHolds) {
  for (const DType kv_dtype : {DType::kFloat16, DType::kInt8, DType::kFloat8E4M3}) {
    Options options = WithDType(DType::kFloat32);
    options.workload = WorkloadKind::kPrefill;
    options.shape.q_len = options.shape.kv_len = 40;
    options.shape.kv_dtype = kv_dtype;
    const Exchange exchange(options);
    EXPECT_TRUE(
        exchange.Check(exchange.answer.output.ToFloats(), exchange.answer.output.shape()).ok())
        << DTypeName(kv_dtype);
    AttentionCase unrounded = exchange.answer.request;
    unrounded.shape.kv_dtype.reset();
    EXPECT_EQ(CheckAnswer(exchange.pool, unrounded, exchange.answer.output).status.code(),
              absl::StatusCode::kDataLoss);
  }
}

TEST(OracleTest, RejectsAnErrorOfFourEpsilonsOfARowInEveryType) {
  for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    const Exchange exchange(WithDType(dtype));
    std::vector<float> values = exchange.answer.output.ToFloats();
    const double factor = 1 + 2 * RelativeTolerance(dtype, 8, 200);
    for (float& value : values) value = static_cast<float>(value * factor);
    const absl::Status status = exchange.Check(values, exchange.answer.output.shape());
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
    EXPECT_THAT(std::string(status.message()), HasSubstr("query 0, head 0: relative error"));
  }
}

TEST(OracleTest, FindsOneWrongElement) {
  const Exchange exchange(WithDType(DType::kBFloat16));
  std::vector<float> values = exchange.answer.output.ToFloats();
  values.back() += 0.1f;
  const absl::Status status = exchange.Check(values, exchange.answer.output.shape());
  EXPECT_THAT(std::string(status.message()), HasSubstr("query 2, head 3"));
}

TEST(OracleTest, RejectsNotANumberAnywhere) {
  const Exchange exchange(SmallOptions());
  std::vector<float> values = exchange.answer.output.ToFloats();
  values[7] = std::numeric_limits<float>::quiet_NaN();
  const absl::Status status = exchange.Check(values, exchange.answer.output.shape());
  EXPECT_THAT(std::string(status.message()), HasSubstr("output element 7 is nan"));
}

TEST(OracleTest, RejectsAnotherShapeOrType) {
  const Exchange exchange(SmallOptions());
  const std::vector<float> values = exchange.answer.output.ToFloats();
  EXPECT_THAT(std::string(exchange.Check(values, {3, 6, 4}).message()),
              HasSubstr("output has shape [3, 6, 4], expected [3, 4, 6]"));
  const auto half = client::Tensor::FromFloats(values, {3, 4, 6}, client::DType::kFloat16);
  const absl::Status status = CheckAnswer(exchange.pool, exchange.answer.request, half).status;
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("output has dtype float16, expected float32"));
}

TEST(OracleTest, OfALargeAnswerAnEvenSpreadOfRowsIsChecked) {
  AttentionCase request;
  request.shape = {.q_len = 4096,
                   .kv_len = 4096,
                   .num_q_heads = 32,
                   .num_kv_heads = 8,
                   .head_dim_qk = 128,
                   .head_dim_v = 128};
  const std::vector<std::int64_t> rows = RowsToCheck(request);
  EXPECT_THAT(rows, ::testing::ElementsAre(0, 1365, 2730, 4095));
  request.shape.kv_len = 1 << 24;
  EXPECT_THAT(RowsToCheck(request), ::testing::ElementsAre(0, 4095));
  request.shape.kv_len = 1;
  EXPECT_EQ(RowsToCheck(request).size(), 4096u);
  request.shape.q_len = 1;
  EXPECT_THAT(RowsToCheck(request), ::testing::ElementsAre(0));
}

TEST(OracleTest, BoundGrowsWithTypeAndLengthsOnly) {
  EXPECT_NEAR(RelativeTolerance(DType::kFloat32, 64, 1024), (2 + 16 + 8 + 32) * 0x1p-23, 1e-12);
  EXPECT_GT(RelativeTolerance(DType::kFloat16, 64, 1024), 2 * 0x1p-10);
  EXPECT_LT(RelativeTolerance(DType::kBFloat16, 64, 1024), 2.01 * 0x1p-7);
}

}  // namespace
}  // namespace attention::loadgen
