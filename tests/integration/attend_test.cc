// Every variant of attention through the wire, against the float64 reference.
#include <cstring>
#include <limits>

#include "tests/support/service_fixture.h"

namespace attention::testing {
namespace {

constexpr v1::DType kDTypes[] = {v1::DTYPE_FLOAT32, v1::DTYPE_FLOAT16, v1::DTYPE_BFLOAT16};

struct Variant {
  const char* name;
  WireSpec spec;
  std::function<void(v1::AttendRequest&)> configure = [](auto&) {};
};

// The tests' names need one of their own.
std::string DTypeSuffix(v1::DType dtype) { return v1::DType_Name(dtype).substr(6); }

std::vector<float> Slopes(int heads) {
  std::vector<float> slopes;
  for (int head = 0; head < heads; ++head) slopes.push_back(std::ldexp(1.0f, -head - 1));
  return slopes;
}

void Causal(v1::AttendRequest& request) { request.mutable_config()->set_is_causal(true); }

void Window(v1::AttendRequest& request, std::int64_t left, std::int64_t right) {
  request.mutable_config()->set_window_left(left);
  request.mutable_config()->set_window_right(right);
}

const WireSpec kSelf{.q_lens = {33}, .kv_lens = {33}};

const Variant kVariants[] = {
    {"ScaledDotProduct", {.num_q_heads = 1, .num_kv_heads = 1, .q_lens = {19}, .kv_lens = {19}}},
    {"GivenScale", kSelf, [](auto& r) { r.mutable_config()->set_softmax_scale(0.3f); }},
    {"NegativeScale", kSelf, [](auto& r) { r.mutable_config()->set_softmax_scale(-0.2f); }},
    {"MultiHead", {.num_q_heads = 6, .num_kv_heads = 6, .q_lens = {21}, .kv_lens = {21}}},
    {"MultiQuery", {.num_q_heads = 6, .num_kv_heads = 1, .q_lens = {21}, .kv_lens = {21}}},
    {"GroupedQuery", {.num_q_heads = 9, .num_kv_heads = 3, .q_lens = {21}, .kv_lens = {21}}},
    {"Cross", {.q_lens = {7}, .kv_lens = {90}}},
    {"CrossFewerKeysThanQueries", {.q_lens = {40}, .kv_lens = {3}}},
    {"Causal", kSelf, Causal},
    {"CausalNewestQueriesOnly", {.q_lens = {5}, .kv_lens = {70}}, Causal},
    {"CausalMoreQueriesThanKeysLeavesEmptyRows", {.q_lens = {12}, .kv_lens = {5}}, Causal},
    {"CausalTopLeft",
     {.q_lens = {9}, .kv_lens = {20}},
     [](auto& r) {
       Causal(r);
       r.add_first_query_positions(0);
     }},
    {"CausalSlidingWindow", kSelf,
     [](auto& r) {
       Causal(r);
       r.mutable_config()->set_window_left(7);
     }},
    {"SymmetricSlidingWindow", kSelf, [](auto& r) { Window(r, 4, 4); }},
    {"WindowOfOneKey", kSelf, [](auto& r) { Window(r, 0, 0); }},
    {"WindowWithSinkTokens",
     {.q_lens = {60}, .kv_lens = {60}},
     [](auto& r) {
       Causal(r);
       Window(r, 9, 0);
       r.mutable_config()->set_sink_tokens(3);
     }},
    {"LearnedSinks", kSelf,
     [](auto& r) {
       Causal(r);
       *r.mutable_config()->mutable_sink_logits() = RandomTensor(v1::DTYPE_FLOAT32, {4}, 5);
     }},
    {"SoftCap", kSelf, [](auto& r) { r.mutable_config()->set_soft_cap(2.5f); }},
    {"Alibi", kSelf,
     [](auto& r) {
       Causal(r);
       *r.mutable_config()->mutable_alibi_slopes() = MakeTensor(v1::DTYPE_FLOAT32, {4}, Slopes(4));
     }},
    {"BiasShared", kSelf,
     [](auto& r) {
       *r.mutable_bias() = RandomTensor(v1::DTYPE_FLOAT32, {33, 33}, 7);
     }},
    {"BiasOfEachHeadInTheRequestsType", kSelf,
     [](auto& r) {
       *r.mutable_bias() = RandomTensor(r.q().dtype(), {4, 33, 33}, 7);
     }},
    {"MaskShared", kSelf,
     [](auto& r) {
       *r.mutable_mask() = RandomMask({33, 33}, 9);
     }},
    {"MaskOfEachHead", kSelf,
     [](auto& r) {
       *r.mutable_mask() = RandomMask({4, 33, 33}, 9);
     }},
    {"MaskSharedOverLeadingOnes", kSelf,
     [](auto& r) {
       *r.mutable_mask() = RandomMask({1, 1, 33, 33}, 9);
     }},
    {"MaskThatHidesEverything", kSelf,
     [](auto& r) {
       *r.mutable_mask() = ZeroTensor(v1::DTYPE_BOOL, {33, 33});
     }},
    {"OddDimensions", {.head_dim_qk = 37, .head_dim_v = 11}},
    {"LargestDimensions", {.head_dim_qk = 576, .head_dim_v = 512}},
    {"SmallestDimensions", {.head_dim_qk = 1, .head_dim_v = 1}},
    {"Everything",
     {.num_q_heads = 8, .num_kv_heads = 2, .q_lens = {30}, .kv_lens = {75}},
     [](auto& r) {
       Causal(r);
       Window(r, 40, 0);
       r.mutable_config()->set_sink_tokens(2);
       r.mutable_config()->set_soft_cap(8);
       *r.mutable_config()->mutable_sink_logits() = RandomTensor(v1::DTYPE_FLOAT32, {8}, 5);
       *r.mutable_config()->mutable_alibi_slopes() = MakeTensor(v1::DTYPE_FLOAT32, {8}, Slopes(8));
       *r.mutable_bias() = RandomTensor(v1::DTYPE_FLOAT32, {1, 30, 75}, 7);
       *r.mutable_mask() = RandomMask({8, 30, 75}, 9);
     }},
};

struct VariantCase {
  const Variant* variant;
  v1::DType dtype;
};

std::vector<VariantCase> VariantCases() {
  std::vector<VariantCase> cases;
  for (const Variant& variant : kVariants) {
    for (const v1::DType dtype : kDTypes) cases.push_back({&variant, dtype});
  }
  return cases;
}

class VariantTest : public ServiceFixture, public ::testing::WithParamInterface<VariantCase> {};

TEST_P(VariantTest, OutputAndLseAndColumnSumsAgreeWithFloat64) {
  WireSpec spec = GetParam().variant->spec;
  spec.dtype = GetParam().dtype;
  v1::AttendRequest request = MakeAttendRequest(spec);
  GetParam().variant->configure(request);
  request.mutable_returns()->set_column_sums(true);
  MustAttend(shared_server(), request);
}

INSTANTIATE_TEST_SUITE_P(AllVariants, VariantTest, ::testing::ValuesIn(VariantCases()),
                         [](const auto& info) {
                           return info.param.variant->name + DTypeSuffix(info.param.dtype);
                         });

class AttendTest : public ServiceFixture {};

const std::vector<std::int64_t> kRaggedQ = {5, 1, 17, 0, 33};
const std::vector<std::int64_t> kRaggedKv = {5, 64, 20, 8, 33};

TEST_F(AttendTest, PackedRaggedSequencesEachAttendOverTheirOwnKeys) {
  for (const v1::DType dtype : kDTypes) {
    SCOPED_TRACE(v1::DType_Name(dtype));
    v1::AttendRequest request =
        MakeAttendRequest({.dtype = dtype, .q_lens = kRaggedQ, .kv_lens = kRaggedKv});
    Causal(request);
    request.mutable_returns()->set_column_sums(true);
    MustAttend(shared_server(), request);
  }
}

TEST_F(AttendTest, PackedMasksAndBiasesAreAsLongAsTheLongestSequence) {
  v1::AttendRequest request = MakeAttendRequest({.q_lens = kRaggedQ, .kv_lens = kRaggedKv});
  *request.mutable_mask() = RandomMask({5, 1, 33, 64}, 3);
  *request.mutable_bias() = RandomTensor(v1::DTYPE_BFLOAT16, {1, 4, 33, 64}, 4);
  MustAttend(shared_server(), request);
  *request.mutable_mask() = RandomMask({5, 4, 33, 64}, 5);
  *request.mutable_bias() = RandomTensor(v1::DTYPE_FLOAT32, {5, 1, 33, 64}, 6);
  MustAttend(shared_server(), request);
  *request.mutable_mask() = RandomMask({5, 1, 1, 64}, 7);
  *request.mutable_bias() = RandomTensor(v1::DTYPE_FLOAT16, {5, 4, 33, 1}, 8);
  MustAttend(shared_server(), request);
  *request.mutable_mask() = RandomMask({1, 64}, 9);
  *request.mutable_bias() = RandomTensor(v1::DTYPE_FLOAT32, {4, 1, 1}, 10);
  MustAttend(shared_server(), request);
}

TEST_F(AttendTest, PackedSequencesMayEachStandAtAPositionOfTheirOwn) {
  v1::AttendRequest request = MakeAttendRequest({.q_lens = {6, 6, 6}, .kv_lens = {10, 10, 10}});
  Causal(request);
  for (const std::int64_t position : {-3, 0, 100}) request.add_first_query_positions(position);
  MustAttend(shared_server(), request);
}

TEST_F(AttendTest, DenseRowsBehindALengthAreZeroWithLseMinusInfinity) {
  for (const v1::DType dtype : kDTypes) {
    SCOPED_TRACE(v1::DType_Name(dtype));
    v1::AttendRequest request = MakeAttendRequest(
        {.dtype = dtype, .q_lens = {13, 8, 5}, .kv_lens = {13, 8, 5}, .is_dense = true});
    request.mutable_returns()->set_column_sums(true);
    MustAttend(shared_server(), request);
  }
}

TEST_F(AttendTest, DenseWithoutLengthsUsesEveryRow) {
  v1::AttendRequest request =
      MakeAttendRequest({.q_lens = {4, 4, 4}, .kv_lens = {9, 9, 9}, .is_dense = true});
  request.clear_q_lens();
  request.clear_kv_lens();
  MustAttend(shared_server(), request);
}

TEST_F(AttendTest, DensePlanesBroadcastOverEveryAxis) {
  v1::AttendRequest request =
      MakeAttendRequest({.q_lens = {6, 3}, .kv_lens = {11, 9}, .is_dense = true});
  const Shape shapes[] = {{6, 11},       {1, 6, 11},    {4, 6, 11},    {1, 1, 6, 11}, {2, 1, 6, 11},
                          {1, 4, 6, 11}, {2, 4, 6, 11}, {2, 1, 1, 11}, {1, 1, 1, 11}, {2, 4, 1, 11},
                          {2, 4, 6, 1},  {2, 1, 6, 1},  {2, 4, 1, 1},  {4, 1, 11},    {1, 11},
                          {6, 1},        {1, 1}};
  for (const Shape& shape : shapes) {
    SCOPED_TRACE(::testing::PrintToString(shape));
    *request.mutable_mask() = RandomMask(shape, 8);
    *request.mutable_bias() = RandomTensor(v1::DTYPE_FLOAT16, shape, 9);
    MustAttend(shared_server(), request);
  }
}

TEST_F(AttendTest, PaddingMayHoldAnything) {
  v1::AttendRequest request =
      MakeAttendRequest({.q_lens = {7, 3}, .kv_lens = {9, 4}, .is_dense = true});
  const v1::AttendResponse clean = MustAttend(shared_server(), request);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::int64_t kv_row = 2 * 32;
  for (std::int64_t i = (9 + 4) * kv_row; i < (9 + 9) * kv_row; ++i) {
    SetElement(request.mutable_k(), i, nan);
    SetElement(request.mutable_v(), i, nan);
  }
  const v1::AttendResponse poisoned = MustAttend(shared_server(), request);
  EXPECT_TRUE(SameBits(clean.output(), poisoned.output()));
  EXPECT_TRUE(SameBits(clean.lse(), poisoned.lse()));
}

TEST_F(AttendTest, EmptySequencesAreLegal) {
  MustAttend(shared_server(), MakeAttendRequest({.q_lens = {0}, .kv_lens = {0}}));
  MustAttend(shared_server(), MakeAttendRequest({.q_lens = {0}, .kv_lens = {4}}));
  MustAttend(shared_server(), MakeAttendRequest({.q_lens = {4}, .kv_lens = {0}}));
}

TEST_F(AttendTest, OnlyWhatIsAskedForComesBack) {
  v1::AttendRequest request = MakeAttendRequest({});
  request.clear_returns();
  const v1::AttendResponse response = MustAttend(shared_server(), request);
  EXPECT_FALSE(response.has_lse());
  EXPECT_FALSE(response.has_column_sums());
}

TEST_F(AttendTest, TimingSaysWhereTheTimeWent) {
  const v1::AttendResponse response = MustAttend(shared_server(), MakeAttendRequest({}));
  EXPECT_GE(response.timing().batch_size(), 1);
  EXPECT_TRUE(response.timing().has_queue());
  EXPECT_TRUE(response.timing().has_batch_formation());
  EXPECT_GT(response.timing().compute().nanos(), 0);
  EXPECT_GT(response.timing().wire_in().nanos(), 0);
  EXPECT_GT(response.timing().wire_out().nanos(), 0);
}

TEST_F(AttendTest, TensorsAreCopiedOnceOnTheWayInAndNeverOnTheWayOut) {
  // Large, so that the message arrives in many pieces and the answer leaves in some.
  v1::AttendRequest request = MakeAttendRequest({.q_lens = {2000}, .kv_lens = {500}});
  *request.mutable_mask() = RandomMask({2000, 500}, 1);
  const double before = shared_server().Metric("attention_copied_bytes_total");
  const v1::AttendResponse response = MustAttend(shared_server(), request);
  const std::size_t bytes = request.q().data().size() + request.k().data().size() +
                            request.v().data().size() + request.mask().data().size();
  EXPECT_EQ(response.timing().copied_bytes(), static_cast<std::int64_t>(bytes));
  EXPECT_EQ(shared_server().Metric("attention_copied_bytes_total") - before,
            static_cast<double>(bytes));
}

TEST_F(AttendTest, TheSdkGivesTheSameBits) {
  v1::AttendRequest request = MakeAttendRequest({.dtype = v1::DTYPE_BFLOAT16});
  Causal(request);
  const v1::AttendResponse expected = MustAttend(shared_server(), request);
  const auto view = [](const v1::Tensor& tensor) {
    return client::TensorView(tensor.data().data(), client::DType::kBFloat16, ShapeOf(tensor));
  };
  client::AttendRequest typed;
  typed.q = view(request.q());
  typed.k = view(request.k());
  typed.v = view(request.v());
  typed.config.is_causal = true;
  typed.returns.lse = true;
  const auto result = shared_server().NewClient()->Attend(typed);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->output.bytes(), expected.output().data());
  EXPECT_EQ(result->lse.bytes(), expected.lse().data());
}

}  // namespace
}  // namespace attention::testing
