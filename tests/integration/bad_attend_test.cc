// Wrong requests for attention: each is refused by the name of its field, and the server goes on.
// Strange but legal values stay within their own rows.
#include <limits>

#include "tests/support/service_fixture.h"

namespace attention::testing {
namespace {

constexpr int kInvalid = grpc::INVALID_ARGUMENT;
const float kNaN = std::numeric_limits<float>::quiet_NaN();
const float kInf = std::numeric_limits<float>::infinity();

struct BadAttend {
  const char* name;
  std::function<void(v1::AttendRequest&)> spoil;
  const char* message;
};

// Two packed sequences of 2 and 3 queries over 4 and 1 keys; 4 query heads on 2 KV heads; 8 and 6
// dimensions.
v1::AttendRequest Packed() {
  return MakeAttendRequest(
      {.head_dim_qk = 8, .head_dim_v = 6, .q_lens = {2, 3}, .kv_lens = {4, 1}});
}

v1::AttendRequest Dense() {
  return MakeAttendRequest(
      {.head_dim_qk = 8, .head_dim_v = 6, .q_lens = {3, 2}, .kv_lens = {5, 5}, .is_dense = true});
}

void Reshape(v1::Tensor* tensor, const Shape& shape, v1::DType dtype = v1::DTYPE_FLOAT32) {
  *tensor = ZeroTensor(dtype, shape);
}

const std::vector<BadAttend> kBadTensors = {
    {"MissingQ", [](auto& r) { r.clear_q(); }, "q is missing"},
    {"MissingK", [](auto& r) { r.clear_k(); }, "k is missing"},
    {"MissingV", [](auto& r) { r.clear_v(); }, "v is missing"},
    {"NothingAtAll", [](auto& r) { r.Clear(); }, "q is missing"},
    {"UnspecifiedDType", [](auto& r) { r.mutable_k()->clear_dtype(); },
     "k.dtype is DTYPE_UNSPECIFIED"},
    {"UnknownDType", [](auto& r) { r.mutable_q()->set_dtype(v1::DType(77)); }, "q.dtype is 77"},
    {"NegativeDType", [](auto& r) { r.mutable_v()->set_dtype(v1::DType(-1)); }, "v.dtype is -1"},
    {"BoolQuery",
     [](auto& r) {
       Reshape(r.mutable_q(), {5, 4, 8}, v1::DTYPE_BOOL);
     },
     "q.dtype is DTYPE_BOOL, expected DTYPE_FLOAT32"},
    {"MixedDTypes",
     [](auto& r) {
       Reshape(r.mutable_v(), {5, 2, 6}, v1::DTYPE_FLOAT16);
     },
     "v.dtype is DTYPE_FLOAT16, expected that of q"},
    {"ShortData", [](auto& r) { r.mutable_q()->mutable_data()->pop_back(); },
     "q.data has 639 bytes, expected 640"},
    {"LongData", [](auto& r) { r.mutable_v()->mutable_data()->push_back('x'); },
     "v.data has 241 bytes, expected 240"},
    {"NoData", [](auto& r) { r.mutable_k()->clear_data(); }, "k.data has 0 bytes, expected 320"},
    {"SizeWrapsAroundToWhatIsThere",
     [](auto& r) {
       // 2^62 * 4 heads * 4 bytes wraps around to nothing.
       r.mutable_q()->clear_data();
       r.mutable_q()->set_shape(0, std::int64_t{1} << 62);
     },
     "overflows"},
    {"AbsurdDimensions",
     [](auto& r) {
       for (int i = 0; i < 3; ++i) {
         r.mutable_k()->set_shape(i, std::numeric_limits<std::int64_t>::max());
       }
     },
     "k.shape is [9223372036854775807"},
    {"NegativeDimension", [](auto& r) { r.mutable_k()->set_shape(1, -2); }, "k.shape[1] is -2"},
    {"ZeroHeads",
     [](auto& r) {
       Reshape(r.mutable_q(), {5, 0, 8});
     },
     "q.shape is [5, 0, 8], expected 1 to 65536 at axis 1 of [tokens, heads, head_dim]"},
    {"ZeroValueDim",
     [](auto& r) {
       Reshape(r.mutable_v(), {5, 2, 0});
     },
     "v.shape is [5, 2, 0], expected 1 to 512 at axis 2"},
    {"Scalar", [](auto& r) { Reshape(r.mutable_q(), {}); }, "q.shape is [], expected rank 3"},
    {"Rank2",
     [](auto& r) {
       Reshape(r.mutable_q(), {20, 8});
     },
     "q.shape is [20, 8], expected rank 3 (packed), [tokens, heads, head_dim], or 4 (dense), "
     "[batch, tokens, heads, head_dim]"},
    {"Rank9",
     [](auto& r) {
       Reshape(r.mutable_q(), {1, 1, 1, 1, 1, 1, 1, 1, 1});
     },
     "q.shape has rank 9"},
    {"RanksDiffer",
     [](auto& r) {
       Reshape(r.mutable_k(), {1, 5, 2, 8});
     },
     "k.shape is [1, 5, 2, 8], expected rank 3, as q"},
    {"HeadDimTooLarge",
     [](auto& r) {
       Reshape(r.mutable_q(), {5, 4, 577});
       Reshape(r.mutable_k(), {5, 2, 577});
     },
     "q.shape is [5, 4, 577], expected 1 to 576 at axis 2 of [tokens, heads, head_dim]"},
    {"ValueDimTooLarge",
     [](auto& r) {
       Reshape(r.mutable_v(), {5, 2, 513});
     },
     "v.shape is [5, 2, 513], expected 1 to 512 at axis 2"},
    {"ValuesBesideAPrefix", [](auto& r) { r.set_value_is_key_prefix(true); },
     "v is given, expected none: value_is_key_prefix is true"},
    {"PrefixLongerThanTheKey",
     [](auto& r) {
       r.clear_v();
       r.set_value_is_key_prefix(true);
       r.set_head_dim_v(9);
     },
     "head_dim_v is 9, expected 1 to 8"},
    {"PrefixOfUnknownLength",
     [](auto& r) {
       r.clear_v();
       r.set_value_is_key_prefix(true);
     },
     "head_dim_v is 0, expected 1 to 8"},
    {"HeadDimBesideValues", [](auto& r) { r.set_head_dim_v(6); },
     "head_dim_v is 6, expected it only with value_is_key_prefix"},
    {"AbsurdHeads",
     [](auto& r) {
       Reshape(r.mutable_q(), {0, 1 << 20, 8});
     },
     "q.shape is [0, 1048576, 8], expected 1 to 65536 at axis 1"},
    {"KeyDimIsNotTheQuerys",
     [](auto& r) {
       Reshape(r.mutable_k(), {5, 2, 9});
     },
     "k.shape is [5, 2, 9], expected 8, as q, at axis 2 of [tokens, heads, head_dim]"},
    {"ValueRowsAreNotTheKeys",
     [](auto& r) {
       Reshape(r.mutable_v(), {4, 2, 6});
     },
     "v.shape is [4, 2, 6], expected 5, as k, at axis 0 of [tokens, heads, head_dim]"},
    {"ValueHeadsAreNotTheKeys",
     [](auto& r) {
       Reshape(r.mutable_v(), {5, 1, 6});
     },
     "v.shape is [5, 1, 6], expected 2, as k, at axis 1"},
    {"HeadsDoNotDivide",
     [](auto& r) {
       Reshape(r.mutable_q(), {5, 3, 8});
     },
     "q.shape is [5, 3, 8], expected a multiple of the 2 heads of k at axis 1 of [tokens, "
     "heads, head_dim]"},
    {"FewerQueryThanKeyHeads",
     [](auto& r) {
       Reshape(r.mutable_q(), {5, 1, 8});
     },
     "q.shape is [5, 1, 8], expected a multiple of the 2 heads of k at axis 1"},
};

const std::vector<BadAttend> kBadLengths = {
    {"NegativeQLength", [](auto& r) { r.set_q_lens(0, -1); }, "q_lens[0] is -1, expected 0 to 5"},
    {"NegativeKvLength", [](auto& r) { r.set_kv_lens(1, -4); }, "kv_lens[1] is -4"},
    {"QLengthsSumToLess", [](auto& r) { r.set_q_lens(1, 2); },
     "q_lens sum to 4, expected the 5 rows of q"},
    {"KvLengthsSumToMore", [](auto& r) { r.set_kv_lens(1, 2); },
     "kv_lens sum to 6, expected the 5 rows of k"},
    {"LengthsThatWrapAround",
     [](auto& r) {
       for (int i = 0; i < 2; ++i) r.set_q_lens(i, std::numeric_limits<std::int64_t>::max());
     },
     "q_lens[0] is 9223372036854775807"},
    {"MoreKvThanQLengths", [](auto& r) { r.add_kv_lens(0); }, "kv_lens has 3 entries, expected 2"},
    {"OnlyQLengths", [](auto& r) { r.clear_kv_lens(); }, "kv_lens has 0 entries, expected 2"},
    {"OnlyKvLengths", [](auto& r) { r.clear_q_lens(); }, "q_lens has 0 entries, expected 2"},
    {"TooFewPositions", [](auto& r) { r.add_first_query_positions(0); },
     "first_query_positions has 1 entries, expected 2"},
    {"AbsurdPosition",
     [](auto& r) {
       r.add_first_query_positions(0);
       r.add_first_query_positions(std::numeric_limits<std::int64_t>::min());
     },
     "first_query_positions[1] is -9223372036854775808"},
};

const std::vector<BadAttend> kBadConfigs = {
    {"NaNScale", [](auto& r) { r.mutable_config()->set_softmax_scale(kNaN); },
     "config.softmax_scale is nan, expected a finite number"},
    {"InfiniteScale", [](auto& r) { r.mutable_config()->set_softmax_scale(kInf); },
     "softmax_scale is inf"},
    {"NaNSoftCap", [](auto& r) { r.mutable_config()->set_soft_cap(kNaN); }, "soft_cap is nan"},
    {"NegativeSoftCap", [](auto& r) { r.mutable_config()->set_soft_cap(-1); },
     "config.soft_cap is -1, expected 0 (none) or a finite number above"},
    {"NegativeWindowLeft", [](auto& r) { r.mutable_config()->set_window_left(-1); },
     "config.window_left is -1, expected 0 to 1099511627776, or absent"},
    {"AbsurdWindowRight",
     [](auto& r) {
       r.mutable_config()->set_window_right(std::numeric_limits<std::int64_t>::max());
     },
     "window_right is 9223372036854775807"},
    {"NegativeSinkTokens", [](auto& r) { r.mutable_config()->set_sink_tokens(-3); },
     "config.sink_tokens is -3"},
    {"SlopesForOtherHeads",
     [](auto& r) { Reshape(r.mutable_config()->mutable_alibi_slopes(), {2}); },
     "config.alibi_slopes.shape is [2], expected [4]"},
    {"SlopesShort",
     [](auto& r) {
       Reshape(r.mutable_config()->mutable_alibi_slopes(), {4});
       r.mutable_config()->mutable_alibi_slopes()->mutable_data()->resize(15);
     },
     "config.alibi_slopes.data has 15 bytes, expected 16"},
    {"SinkLogitsOfAnotherType",
     [](auto& r) { Reshape(r.mutable_config()->mutable_sink_logits(), {4}, v1::DTYPE_FLOAT16); },
     "config.sink_logits.dtype is DTYPE_FLOAT16"},
    {"SlopeThatIsNoNumber",
     [](auto& r) {
       Reshape(r.mutable_config()->mutable_alibi_slopes(), {4});
       SetElement(r.mutable_config()->mutable_alibi_slopes(), 1, kNaN);
     },
     "config.alibi_slopes[1] is nan, expected a finite number"},
    {"MaskOfOtherBytes",
     [](auto& r) {
       Reshape(r.mutable_mask(), {3, 4}, v1::DTYPE_BOOL);
       r.mutable_mask()->mutable_data()->back() = 7;
     },
     "mask.data[11] is 7, expected 0 or 1"},
    {"MaskShape",
     [](auto& r) {
       Reshape(r.mutable_mask(), {3, 5}, v1::DTYPE_BOOL);
     },
     "mask.shape is [3, 5], expected 1 or 4 at axis 1 of [queries, keys]"},
    {"MaskHeads",
     [](auto& r) {
       Reshape(r.mutable_mask(), {2, 3, 4}, v1::DTYPE_BOOL);
     },
     "mask.shape is [2, 3, 4], expected 1 or 4 at axis 0 of [heads, queries, keys]"},
    {"MaskBatch",
     [](auto& r) {
       Reshape(r.mutable_mask(), {3, 1, 3, 4}, v1::DTYPE_BOOL);
     },
     "mask.shape is [3, 1, 3, 4], expected 1 or 2 at axis 0 of [sequences, heads, queries, keys]"},
    {"MaskRank", [](auto& r) { Reshape(r.mutable_mask(), {4}, v1::DTYPE_BOOL); },
     "mask.shape is [4], expected rank 2 to 4"},
    {"MaskOfFloats",
     [](auto& r) {
       Reshape(r.mutable_mask(), {3, 4});
     },
     "mask.dtype is DTYPE_FLOAT32, expected DTYPE_BOOL"},
    {"MaskShort",
     [](auto& r) {
       Reshape(r.mutable_mask(), {3, 4}, v1::DTYPE_BOOL);
       r.mutable_mask()->mutable_data()->pop_back();
     },
     "mask.data has 11 bytes, expected 12"},
    {"BiasOfBools",
     [](auto& r) {
       Reshape(r.mutable_bias(), {3, 4}, v1::DTYPE_BOOL);
     },
     "bias.dtype is DTYPE_BOOL"},
    {"BiasRows",
     [](auto& r) {
       Reshape(r.mutable_bias(), {4, 4});
     },
     "bias.shape is [4, 4], expected 1 or 3 at axis 0 of [queries, keys]"},
    {"EmptyBias", [](auto& r) { r.mutable_bias(); }, "bias.dtype is"},
};

std::vector<BadAttend> AllBadAttends() {
  std::vector<BadAttend> all = kBadTensors;
  all.insert(all.end(), kBadLengths.begin(), kBadLengths.end());
  all.insert(all.end(), kBadConfigs.begin(), kBadConfigs.end());
  return all;
}

class BadAttendTest : public ServiceFixture, public ::testing::WithParamInterface<BadAttend> {};

TEST_P(BadAttendTest, TheFieldIsNamedAndTheNextGoodRequestIsServed) {
  v1::AttendRequest request = Packed();
  GetParam().spoil(request);
  v1::AttendResponse response;
  const grpc::Status status = Attend(shared_server(), request, &response);
  EXPECT_THAT(status, FailsWith(kInvalid, GetParam().message));
  ExpectServes(shared_server());
}

INSTANTIATE_TEST_SUITE_P(Fields, BadAttendTest, ::testing::ValuesIn(AllBadAttends()),
                         [](const auto& info) { return std::string(info.param.name); });

class BadDenseTest : public ServiceFixture, public ::testing::WithParamInterface<BadAttend> {};

TEST_P(BadDenseTest, TheFieldIsNamedAndTheNextGoodRequestIsServed) {
  v1::AttendRequest request = Dense();
  GetParam().spoil(request);
  v1::AttendResponse response;
  EXPECT_THAT(Attend(shared_server(), request, &response), FailsWith(kInvalid, GetParam().message));
  ExpectServes(shared_server());
}

INSTANTIATE_TEST_SUITE_P(
    Fields, BadDenseTest,
    ::testing::Values(
        BadAttend{"BatchesDiffer",
                  [](auto& r) {
                    Reshape(r.mutable_k(), {3, 5, 2, 8});
                    Reshape(r.mutable_v(), {3, 5, 2, 6});
                  },
                  "k.shape is [3, 5, 2, 8], expected 2, as q, at axis 0 of [batch, tokens, "
                  "heads, head_dim]"},
        BadAttend{"LengthBeyondThePadding", [](auto& r) { r.set_kv_lens(1, 6); },
                  "kv_lens[1] is 6, expected 0 to 5"},
        BadAttend{"LengthForEachSequence", [](auto& r) { r.add_q_lens(1); },
                  "q_lens has 3 entries, expected 2"}),
    [](const auto& info) { return std::string(info.param.name); });

class StrangeDataTest : public ServiceFixture {};

TEST_F(StrangeDataTest, WeightsThatNoAnswerHoldsAreRefused) {
  TestServer own([](server::ServerConfig& config) { config.max_message_bytes = 1 << 20; });
  v1::AttendRequest request =
      MakeAttendRequest({.num_q_heads = 4, .head_dim_qk = 1, .q_lens = {300}, .kv_lens = {300}});
  request.mutable_returns()->set_weights(true);
  v1::AttendResponse response;
  EXPECT_THAT(Attend(own, request, &response),
              FailsWith(kInvalid, "weights[0].weights would have shape [300, 4, 300]"));
  ExpectServes(own);
}

TEST_F(StrangeDataTest, AMillionSequencesAreRefused) {
  v1::AttendRequest request = Packed();
  for (int i = 0; i < 1'000'000; ++i) {
    request.add_q_lens(0);
    request.add_kv_lens(0);
  }
  v1::AttendResponse response;
  EXPECT_THAT(Attend(shared_server(), request, &response),
              FailsWith(kInvalid, "q_lens is of 1000002 sequences"));
  ExpectServes(shared_server());
}

TEST_F(StrangeDataTest, NaNAndInfReachTheRowsThatReadThemAndNoOthers) {
  v1::AttendRequest clean = MakeAttendRequest({.q_lens = {20, 6}, .kv_lens = {20, 6}});
  clean.mutable_config()->set_is_causal(true);
  const v1::AttendResponse expected = MustAttend(shared_server(), clean);
  for (const float strange : {kNaN, kInf, -kInf}) {
    SCOPED_TRACE(strange);
    v1::AttendRequest request = clean;
    constexpr std::int64_t kQRow = 4 * 32;
    constexpr std::int64_t kKvRow = 2 * 32;
    SetElement(request.mutable_q(), 3 * kQRow + 5, strange);    // row 3, head 0
    SetElement(request.mutable_v(), 11 * kKvRow + 7, strange);  // rows from 11 on, heads 0 and 1
    const v1::AttendResponse actual = MustAttend(shared_server(), request);
    for (const auto& [begin, end] : {std::pair{0, 3}, {4, 11}, {20, 26}}) {
      EXPECT_TRUE(SameBits(Rows(actual.output(), begin, end), Rows(expected.output(), begin, end)))
          << "rows " << begin << " to " << end;
    }
    EXPECT_FALSE(SameBits(Rows(actual.output(), 11, 20), Rows(expected.output(), 11, 20)));
  }
}

TEST_F(StrangeDataTest, NaNStaysWithinItsOwnRequestOfABatch) {
  const v1::AttendRequest clean = MakeAttendRequest({.q_lens = {30}, .kv_lens = {60}});
  v1::AttendRequest poisoned = MakeAttendRequest({.q_lens = {30}, .kv_lens = {60}, .seed = 2});
  for (v1::Tensor* tensor : {poisoned.mutable_q(), poisoned.mutable_k(), poisoned.mutable_v()}) {
    for (std::int64_t i = 0; i < NumElements(*tensor); ++i) SetElement(tensor, i, kNaN);
  }
  const v1::AttendResponse expected = MustAttend(shared_server(), clean);
  const auto context = NewContext();
  const auto stream = shared_server().attention().AttendStream(context.get());
  for (std::uint64_t id = 0; id < 40; ++id) {
    v1::AttendStreamRequest request;
    request.set_request_id(id);
    *request.mutable_request() = id % 2 == 0 ? clean : poisoned;
    ASSERT_TRUE(stream->Write(request));
  }
  stream->WritesDone();
  v1::AttendStreamResponse answer;
  int num_clean = 0;
  while (stream->Read(&answer)) {
    ASSERT_TRUE(answer.has_response());
    if (answer.request_id() % 2 != 0) continue;
    ++num_clean;
    EXPECT_TRUE(SameBits(answer.response().output(), expected.output()));
  }
  EXPECT_EQ(num_clean, 20);
  EXPECT_TRUE(stream->Finish().ok());
}

}  // namespace
}  // namespace attention::testing
