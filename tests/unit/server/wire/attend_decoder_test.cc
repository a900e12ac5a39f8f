#include "server/wire/attend_decoder.h"

#include <gmock/gmock.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>

#include "kernels/reference/reference_backend.h"
#include "tests/support/decoding.h"

namespace attention::server {
namespace {

using ::testing::HasSubstr;

void Fill(v1::Tensor* tensor, std::vector<std::int64_t> shape,
          v1::DType dtype = v1::DTYPE_FLOAT32) {
  tensor->Clear();
  tensor->set_dtype(dtype);
  std::int64_t bytes = dtype == v1::DTYPE_FLOAT32 ? 4 : dtype == v1::DTYPE_BOOL ? 1 : 2;
  for (const std::int64_t dimension : shape) {
    tensor->add_shape(dimension);
    bytes *= dimension;
  }
  tensor->mutable_data()->assign(static_cast<std::size_t>(bytes), '\0');
}

// A vector for the four heads of the requests, one element of which is `value`.
void FillFloats(v1::Tensor* tensor, std::size_t index, float value) {
  Fill(tensor, {4});
  std::memcpy(tensor->mutable_data()->data() + index * sizeof(value), &value, sizeof(value));
}

// Two sequences of 2 and 3 queries over 4 and 1 keys; 4 query heads on 2 KV heads; dims 8 and 6.
v1::AttendRequest Packed() {
  v1::AttendRequest request;
  Fill(request.mutable_q(), {5, 4, 8});
  Fill(request.mutable_k(), {5, 2, 8});
  Fill(request.mutable_v(), {5, 2, 6});
  for (const int length : {2, 3}) request.add_q_lens(length);
  for (const int length : {4, 1}) request.add_kv_lens(length);
  return request;
}

v1::AttendRequest Dense() {
  v1::AttendRequest request;
  Fill(request.mutable_q(), {2, 3, 4, 8});
  Fill(request.mutable_k(), {2, 5, 2, 8});
  Fill(request.mutable_v(), {2, 5, 2, 6});
  return request;
}

class AttendDecoderTest : public ::testing::Test {
 protected:
  absl::StatusOr<DecodedAttend> Decode(const v1::AttendRequest& request) {
    return DecodeAttend(request, WeightsForm::kInAnswer, decoding_.tensors(),
                        decoding_.allocator());
  }

  std::unique_ptr<AttentionBackend> backend_ = reference::MakeReferenceBackend();
  testing::Decoding decoding_{backend_->memory()};
};

std::int64_t BytesBetween(const void* from, const void* to) {
  return static_cast<const char*>(to) - static_cast<const char*>(from);
}

TEST_F(AttendDecoderTest, PackedSequencesFollowEachOther) {
  v1::AttendRequest request = Packed();
  request.mutable_returns()->set_lse(true);
  request.mutable_returns()->set_column_sums(true);
  auto decoded = Decode(request);
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  ASSERT_EQ(decoded->tasks.size(), 2u);
  const AttentionTask& first = decoded->tasks[0];
  const AttentionTask& second = decoded->tasks[1];
  EXPECT_EQ(second.q_len, 3);
  EXPECT_EQ(second.kv_len, 1);
  EXPECT_EQ(second.first_query_position, -2);
  EXPECT_EQ(BytesBetween(first.q.data, second.q.data), 2 * 4 * 8 * 4);
  EXPECT_EQ(BytesBetween(first.k.data, second.k.data), 4 * 2 * 8 * 4);
  EXPECT_EQ(BytesBetween(first.v.data, second.v.data), 4 * 2 * 6 * 4);
  EXPECT_EQ(BytesBetween(decoded->output.data(), second.o.data), 2 * 4 * 6 * 4);
  EXPECT_EQ(second.lse, decoded->lse.floats() + 2 * 4);
  EXPECT_EQ(second.column_sums, decoded->column_sums.floats() + 4 * 4);
  EXPECT_EQ(decoded->output.header().shape().size(), 3);
  EXPECT_EQ(decoded->output.header().shape(2), 6);
  EXPECT_EQ(decoded->column_sums.header().shape(0), 5);
  EXPECT_FLOAT_EQ(second.params.softmax_scale, 1.0f / std::sqrt(8.0f));
}

TEST_F(AttendDecoderTest, DenseSequencesKeepTheirPaddingOut) {
  v1::AttendRequest request = Dense();
  for (const int length : {3, 1}) request.add_q_lens(length);
  for (const int length : {5, 2}) request.add_kv_lens(length);
  request.mutable_returns()->set_lse(true);
  auto decoded = Decode(request);
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  const AttentionTask& second = decoded->tasks[1];
  EXPECT_EQ(second.q_len, 1);
  EXPECT_EQ(second.kv_len, 2);
  EXPECT_EQ(BytesBetween(decoded->tasks[0].k.data, second.k.data), 5 * 2 * 8 * 4);
  EXPECT_EQ(BytesBetween(decoded->output.data(), second.o.data), 3 * 4 * 6 * 4);
  EXPECT_EQ(decoded->lse.floats()[5 * 4], -std::numeric_limits<float>::infinity());
  const auto* output = reinterpret_cast<const float*>(decoded->output.data());
  EXPECT_EQ(output[5 * 4 * 6], 0.0f);
}

TEST_F(AttendDecoderTest, MasksBroadcastOverHeadsAndSequences) {
  v1::AttendRequest request = Dense();
  Fill(request.mutable_mask(), {2, 1, 3, 5}, v1::DTYPE_BOOL);
  auto decoded = Decode(request);
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  EXPECT_EQ(decoded->tasks[1].mask.data - decoded->tasks[0].mask.data, 15);
  EXPECT_EQ(decoded->tasks[0].mask.head_stride, 0);
  EXPECT_EQ(decoded->tasks[0].mask.row_stride, 5);
  Fill(request.mutable_mask(), {4, 3, 5}, v1::DTYPE_BOOL);
  decoded = Decode(request);
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  EXPECT_EQ(decoded->tasks[1].mask.data, decoded->tasks[0].mask.data);
  EXPECT_EQ(decoded->tasks[0].mask.head_stride, 15);
}

TEST_F(AttendDecoderTest, AxesOfOneOfAPlaneHaveNoStride) {
  struct Case {
    std::vector<std::int64_t> shape;
    std::int64_t head, row, key;
  };
  for (const Case& c : {Case{{2, 1, 1, 5}, 0, 0, 1}, Case{{1, 4, 3, 1}, 3, 1, 0},
                        Case{{4, 1, 5}, 5, 0, 1}, Case{{1, 5}, 0, 0, 1}, Case{{1, 1}, 0, 0, 0}}) {
    SCOPED_TRACE(::testing::PrintToString(c.shape));
    v1::AttendRequest request = Dense();
    Fill(request.mutable_mask(), c.shape, v1::DTYPE_BOOL);
    Fill(request.mutable_bias(), c.shape, v1::DTYPE_BFLOAT16);
    auto decoded = Decode(request);
    ASSERT_TRUE(decoded.ok()) << decoded.status();
    const MaskView& mask = decoded->tasks[1].mask;
    const BiasView& bias = decoded->tasks[1].bias;
    EXPECT_EQ(mask.head_stride, c.head);
    EXPECT_EQ(mask.row_stride, c.row);
    EXPECT_EQ(mask.key_stride, c.key);
    EXPECT_EQ(bias.head_stride, c.head);
    EXPECT_EQ(bias.row_stride, c.row);
    EXPECT_EQ(bias.key_stride, c.key);
    EXPECT_EQ(mask.data - decoded->tasks[0].mask.data, c.shape[0] == 2 ? 5 : 0);
  }
}

struct BadRequest {
  const char* name;
  std::function<void(v1::AttendRequest&)> spoil;
  const char* message;
};

class BadPackedTest : public AttendDecoderTest, public ::testing::WithParamInterface<BadRequest> {};

TEST_P(BadPackedTest, NamesTheFieldWithActualAndExpected) {
  v1::AttendRequest request = Packed();
  GetParam().spoil(request);
  const absl::Status status = Decode(request).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr(GetParam().message));
}

const float kNaN = std::numeric_limits<float>::quiet_NaN();

INSTANTIATE_TEST_SUITE_P(
    Fields, BadPackedTest,
    ::testing::Values(
        BadRequest{"MissingQ", [](auto& r) { r.clear_q(); }, "q is missing"},
        BadRequest{"MissingK", [](auto& r) { r.clear_k(); }, "k is missing"},
        BadRequest{"MissingV", [](auto& r) { r.clear_v(); }, "v is missing"},
        BadRequest{"UnknownDType", [](auto& r) { r.mutable_q()->set_dtype(v1::DType(77)); },
                   "q.dtype is 77"},
        BadRequest{"UnspecifiedDType",
                   [](auto& r) { r.mutable_k()->set_dtype(v1::DTYPE_UNSPECIFIED); },
                   "k.dtype is DTYPE_UNSPECIFIED, expected that of q (DTYPE_FLOAT32)"},
        BadRequest{"UnsetDType", [](auto& r) { r.mutable_q()->clear_dtype(); },
                   "q.dtype is DTYPE_UNSPECIFIED, expected DTYPE_FLOAT32, DTYPE_FLOAT16 or "
                   "DTYPE_BFLOAT16"},
        BadRequest{"BoolData",
                   [](auto& r) {
                     Fill(r.mutable_q(), {5, 4, 8}, v1::DTYPE_BOOL);
                   },
                   "q.dtype is DTYPE_BOOL, expected DTYPE_FLOAT32"},
        BadRequest{"MixedDTypes",
                   [](auto& r) {
                     Fill(r.mutable_v(), {5, 2, 6}, v1::DTYPE_FLOAT16);
                   },
                   "v.dtype is DTYPE_FLOAT16, expected that of q (DTYPE_FLOAT32)"},
        BadRequest{"ShortData", [](auto& r) { r.mutable_q()->mutable_data()->pop_back(); },
                   "q.data has 639 bytes, expected 640"},
        BadRequest{"LongData", [](auto& r) { r.mutable_v()->mutable_data()->push_back('x'); },
                   "v.data has 241 bytes, expected 240"},
        BadRequest{"NegativeDimension", [](auto& r) { r.mutable_k()->set_shape(1, -2); },
                   "k.shape[1] is -2"},
        BadRequest{"OverflowingShape",
                   [](auto& r) {
                     for (int i = 0; i < 3; ++i) r.mutable_q()->set_shape(i, std::int64_t{1} << 40);
                   },
                   "overflows"},
        BadRequest{"ZeroHeads",
                   [](auto& r) {
                     Fill(r.mutable_q(), {5, 0, 8});
                   },
                   "q.shape is [5, 0, 8], expected 1 to 65536 at axis 1 of [tokens, heads, head_dim]"},
        BadRequest{"ZeroHeadDim",
                   [](auto& r) {
                     Fill(r.mutable_q(), {5, 4, 0});
                     Fill(r.mutable_k(), {5, 2, 0});
                   },
                   "q.shape is [5, 4, 0]"},
        BadRequest{"HeadDimTooLarge",
                   [](auto& r) {
                     Fill(r.mutable_q(), {5, 4, 577});
                     Fill(r.mutable_k(), {5, 2, 577});
                   },
                   "q.shape is [5, 4, 577], expected 1 to 576 at axis 2 of [tokens, heads, head_dim]"},
        BadRequest{"AbsurdHeads",
                   [](auto& r) {
                     Fill(r.mutable_q(), {0, 1 << 20, 8});
                   },
                   "q.shape is [0, 1048576, 8], expected 1 to 65536 at axis 1"},
        BadRequest{"Rank2",
                   [](auto& r) {
                     Fill(r.mutable_q(), {20, 8});
                   },
                   "q.shape is [20, 8], expected rank 3 (packed), [tokens, heads, head_dim], or 4 (dense), "
                   "[batch, tokens, heads, head_dim]"},
        BadRequest{"Rank9",
                   [](auto& r) {
                     Fill(r.mutable_q(), {1, 1, 1, 1, 1, 1, 1, 1, 1});
                   },
                   "q.shape has rank 9"},
        BadRequest{"RanksDiffer",
                   [](auto& r) {
                     Fill(r.mutable_k(), {1, 5, 2, 8});
                   },
                   "k.shape is [1, 5, 2, 8], expected rank 3, as q"},
        BadRequest{"KeyHeadDim",
                   [](auto& r) {
                     Fill(r.mutable_k(), {5, 2, 9});
                   },
                   "k.shape is [5, 2, 9], expected 8, as q, at axis 2 of [tokens, heads, head_dim]"},
        BadRequest{"ValueRows",
                   [](auto& r) {
                     Fill(r.mutable_v(), {4, 2, 6});
                   },
                   "v.shape is [4, 2, 6], expected 5, as k, at axis 0 of [tokens, heads, head_dim]"},
        BadRequest{"ValueHeads",
                   [](auto& r) {
                     Fill(r.mutable_v(), {5, 1, 6});
                   },
                   "v.shape is [5, 1, 6], expected 2, as k, at axis 1"},
        BadRequest{"HeadsDoNotDivide",
                   [](auto& r) {
                     Fill(r.mutable_q(), {5, 3, 8});
                   },
                   "q.shape is [5, 3, 8], expected a multiple of the 2 heads of k at axis 1 of [tokens, "
                   "heads, head_dim]"},
        BadRequest{"NegativeLength", [](auto& r) { r.set_q_lens(0, -1); },
                   "q_lens[0] is -1, expected 0 to 5"},
        BadRequest{"LengthsDoNotSum", [](auto& r) { r.set_kv_lens(1, 0); },
                   "kv_lens sum to 4, expected the 5 rows of k"},
        BadRequest{"LengthCounts", [](auto& r) { r.add_kv_lens(0); },
                   "kv_lens has 3 entries, expected 2"},
        BadRequest{"OnlyOneKindOfLengths", [](auto& r) { r.clear_kv_lens(); },
                   "kv_lens has 0 entries, expected 2"},
        BadRequest{"PositionCount", [](auto& r) { r.add_first_query_positions(0); },
                   "first_query_positions has 1 entries, expected 2"},
        BadRequest{"AbsurdPosition",
                   [](auto& r) {
                     r.add_first_query_positions(0);
                     r.add_first_query_positions(std::numeric_limits<std::int64_t>::min());
                   },
                   "first_query_positions[1] is -9223372036854775808"},
        BadRequest{"NaNScale", [](auto& r) { r.mutable_config()->set_softmax_scale(kNaN); },
                   "config.softmax_scale is nan, expected a finite number"},
        BadRequest{"NegativeSoftCap", [](auto& r) { r.mutable_config()->set_soft_cap(-1); },
                   "config.soft_cap is -1, expected 0 (none) or a finite number above"},
        BadRequest{"NegativeWindow", [](auto& r) { r.mutable_config()->set_window_left(-3); },
                   "config.window_left is -3"},
        BadRequest{"WindowTooWide",
                   [](auto& r) { r.mutable_config()->set_window_right(kMaxPosition + 1); },
                   "config.window_right is 1099511627777, expected 0 to 1099511627776, or absent"},
        BadRequest{"NegativeSinks", [](auto& r) { r.mutable_config()->set_sink_tokens(-3); },
                   "config.sink_tokens is -3"},
        BadRequest{"AlibiCount",
                   [](auto& r) { Fill(r.mutable_config()->mutable_alibi_slopes(), {2}); },
                   "config.alibi_slopes.shape is [2], expected [4]"},
        BadRequest{"SinkLogitsDType",
                   [](auto& r) {
                     Fill(r.mutable_config()->mutable_sink_logits(), {4}, v1::DTYPE_FLOAT16);
                   },
                   "config.sink_logits.dtype is DTYPE_FLOAT16"},
        BadRequest{"SlopeNaN",
                   [](auto& r) { FillFloats(r.mutable_config()->mutable_alibi_slopes(), 2, kNaN); },
                   "config.alibi_slopes[2] is nan, expected a finite number"},
        BadRequest{"SinkLogitInfinite",
                   [](auto& r) {
                     FillFloats(r.mutable_config()->mutable_sink_logits(), 3, -INFINITY);
                   },
                   "config.sink_logits[3] is -inf, expected a finite number"},
        BadRequest{"MaskBytes",
                   [](auto& r) {
                     Fill(r.mutable_mask(), {3, 4}, v1::DTYPE_BOOL);
                     (*r.mutable_mask()->mutable_data())[10] = 2;
                   },
                   "mask.data[10] is 2, expected 0 or 1"},
        BadRequest{"MaskUnknownDType",
                   [](auto& r) {
                     Fill(r.mutable_mask(), {3, 4}, v1::DTYPE_BOOL);
                     r.mutable_mask()->set_dtype(v1::DType(77));
                   },
                   "mask.dtype is 77, expected DTYPE_BOOL"},
        BadRequest{"MaskShape",
                   [](auto& r) {
                     Fill(r.mutable_mask(), {3, 5}, v1::DTYPE_BOOL);
                   },
                   "mask.shape is [3, 5], expected 1 or 4 at axis 1 of [queries, keys]"},
        BadRequest{"MaskHeads",
                   [](auto& r) {
                     Fill(r.mutable_mask(), {2, 3, 4}, v1::DTYPE_BOOL);
                   },
                   "mask.shape is [2, 3, 4], expected 1 or 4 at axis 0 of [heads, queries, keys]"},
        BadRequest{"MaskDType", [](auto& r) { Fill(r.mutable_mask(), {3, 4}); },
                   "mask.dtype is DTYPE_FLOAT32, expected DTYPE_BOOL"},
        BadRequest{"BiasDType", [](auto& r) { Fill(r.mutable_bias(), {3, 4}, v1::DTYPE_BOOL); },
                   "bias.dtype is DTYPE_BOOL"},
        BadRequest{"BiasRank", [](auto& r) { Fill(r.mutable_bias(), {4}); },
                   "bias.shape is [4], expected rank 2 to 4 of [sequences, heads, queries, keys]"}),
    [](const auto& info) { return std::string(info.param.name); });

TEST_F(AttendDecoderTest, AnOutputBeyondTheLimitIsRefusedBeforeItIsAllocated) {
  v1::AttendRequest request;
  Fill(request.mutable_q(), {1, 60000, 1});
  Fill(request.mutable_k(), {1, 1, 1});
  Fill(request.mutable_v(), {1, 1, 256});
  const absl::Status status = Decode(request).status();
  EXPECT_THAT(std::string(status.message()), HasSubstr("output would have shape [1, 60000, 256]"));
  EXPECT_EQ(decoding_.pool().used_bytes(), 0u);
}

// Each of them fits alone.
TEST_F(AttendDecoderTest, ResultsThatExceedTheLimitTogetherAreRefusedBeforeTheyAreAllocated) {
  v1::AttendRequest request;
  Fill(request.mutable_q(), {1, 500, 1});
  Fill(request.mutable_k(), {400, 1, 1});
  Fill(request.mutable_v(), {400, 1, 200});
  request.mutable_returns()->set_column_sums(true);
  const absl::Status status = Decode(request).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("column_sums would have shape [400, 500] of DTYPE_FLOAT32, 800000 bytes, "
                        "expected at most the 648576 that are left of this request's 1048576"));
  EXPECT_EQ(decoding_.pool().used_bytes(), 0u);
}

TEST_F(AttendDecoderTest, NothingIsAllocatedOfResultsThatAreNotAdmitted) {
  std::int64_t asked = 0;
  const auto refuse = [&](std::int64_t bytes) -> absl::StatusOr<ResultLedger::Charge> {
    asked = bytes;
    return absl::ResourceExhaustedError("no room");
  };
  ResponseAllocator allocator(decoding_.pool(), kNobody, 1 << 20, refuse);
  v1::AttendRequest request = Packed();
  request.mutable_returns()->set_lse(true);
  const auto decoded =
      DecodeAttend(request, WeightsForm::kInAnswer, decoding_.tensors(), allocator);
  EXPECT_EQ(decoded.status().message(), "no room");
  EXPECT_EQ(asked, 5 * 4 * 6 * 4 + 5 * 4 * 4) << "output and lse";
  EXPECT_EQ(decoding_.pool().used_bytes(), 0u);
}

TEST_F(AttendDecoderTest, AMillionEmptySequencesAreRefused) {
  v1::AttendRequest request = Packed();
  for (int i = 0; i < 20000; ++i) {
    request.add_q_lens(0);
    request.add_kv_lens(0);
  }
  EXPECT_THAT(std::string(Decode(request).status().message()),
              HasSubstr("q_lens is of 20002 sequences, expected at most 16384"));
}

TEST_F(AttendDecoderTest, TensorsArePlacedOnCacheLinesAndCopiedOnce) {
  const v1::AttendRequest request = Packed();
  const auto decoded = Decode(request);
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  const AttentionTask& first = decoded->tasks[0];
  for (const void* data : {first.q.data, first.k.data, first.v.data}) {
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(data) % 64, 0u);
  }
  EXPECT_EQ(decoding_.tensors().copied_bytes(),
            static_cast<std::int64_t>(request.q().data().size() + request.k().data().size() +
                                      request.v().data().size()));
}

TEST_F(AttendDecoderTest, EmptySequencesAreLegal) {
  v1::AttendRequest request;
  Fill(request.mutable_q(), {0, 4, 8});
  Fill(request.mutable_k(), {0, 2, 8});
  Fill(request.mutable_v(), {0, 2, 6});
  EXPECT_TRUE(Decode(request).ok());
  request = Dense();
  Fill(request.mutable_q(), {0, 3, 4, 8});
  Fill(request.mutable_k(), {0, 5, 2, 8});
  Fill(request.mutable_v(), {0, 5, 2, 6});
  EXPECT_TRUE(Decode(request).ok());
}

}  // namespace
}  // namespace attention::server
