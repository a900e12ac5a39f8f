// Wrong session calls: each is refused by the name of its field, changes nothing, and the server
// goes on.
#include <limits>

#include "tests/support/session_driver.h"

namespace attention::testing {
namespace {

constexpr int kInvalid = grpc::INVALID_ARGUMENT;

struct BadStep {
  const char* name;
  std::function<void(v1::SessionStep&)> spoil;
  int code;
  const char* message;
};

class BadStepTest : public ServiceFixture, public ::testing::WithParamInterface<BadStep> {};

// The session holds 10 tokens and the spoilt step would bring 5 more.
TEST_P(BadStepTest, TheFieldIsNamedNothingIsAppendedAndTheNextGoodStepIsServed) {
  const v1::AttendRequest prompt = MakePrompt(15);
  const v1::SessionHandle handle = MustCreate(shared_server()).handle();
  MustStep(shared_server(), MakeStep(prompt, handle, 0, 10));
  const v1::SessionStep good = MakeStep(prompt, handle, 10, 15);
  v1::SessionStep bad = good;
  GetParam().spoil(bad);
  const v1::SessionStepResult result = RunStep(shared_server(), bad);
  EXPECT_THAT(result.error(), FailsWith(GetParam().code, GetParam().message));
  EXPECT_FALSE(result.has_output());
  EXPECT_EQ(MustGet(shared_server(), handle).layer_lengths(0), 10);
  EXPECT_EQ(MustStep(shared_server(), good).position(), 15);
}

void Reshape(v1::Tensor* tensor, const Shape& shape, v1::DType dtype = v1::DTYPE_FLOAT32) {
  *tensor = ZeroTensor(dtype, shape);
}

INSTANTIATE_TEST_SUITE_P(
    Fields, BadStepTest,
    ::testing::Values(
        BadStep{"NoHandle", [](auto& s) { s.clear_handle(); }, kInvalid,
                "handle.session_id is empty"},
        BadStep{"UnknownSession", [](auto& s) { s.mutable_handle()->set_session_id("nobody"); },
                grpc::NOT_FOUND, "handle.session_id 'nobody'"},
        BadStep{"LayerTooLarge", [](auto& s) { s.set_layer(1); }, kInvalid,
                "layer is 1, expected 0 to 0"},
        BadStep{"LayerNegative", [](auto& s) { s.set_layer(-1); }, kInvalid, "layer is -1"},
        BadStep{"PositionBehind", [](auto& s) { s.set_expected_position(9); },
                grpc::FAILED_PRECONDITION, "expected_position is 9, but the layer holds 10"},
        BadStep{"PositionAhead", [](auto& s) { s.set_expected_position(11); },
                grpc::FAILED_PRECONDITION, "expected_position is 11, but the layer holds 10"},
        BadStep{"PositionNegative", [](auto& s) { s.set_expected_position(-1); }, kInvalid,
                "expected_position is -1"},
        BadStep{"PositionAbsurd",
                [](auto& s) { s.set_expected_position(std::numeric_limits<std::int64_t>::max()); },
                kInvalid, "expected_position is 9223372036854775807"},
        BadStep{"TreeTooShort", [](auto& s) { s.mutable_tree()->set_ancestors("\1\3\7\xf"); },
                kInvalid, "tree.ancestors has 4 bytes, expected 5: 5 rows of 1"},
        BadStep{"TreeEmpty", [](auto& s) { s.mutable_tree(); }, kInvalid,
                "tree.ancestors has 0 bytes, expected 5"},
        BadStep{"TreeWithoutItself",
                [](auto& s) { s.mutable_tree()->set_ancestors("\1\1\4\x8\x10"); }, kInvalid,
                "tree.ancestors[1] lacks its own bit"},
        BadStep{"TreeOfLaterRows",
                [](auto& s) { s.mutable_tree()->set_ancestors("\1\6\4\x8\x10"); }, kInvalid,
                "tree.ancestors[1] names row 2, expected rows up to its own"},
        BadStep{"TreeOfRowsThatAreNotThere",
                [](auto& s) { s.mutable_tree()->set_ancestors("\1\2\4\x8\x50"); }, kInvalid,
                "tree.ancestors[4] names row 6, expected rows up to its own"},
        BadStep{"TreeNotTransitive",
                [](auto& s) { s.mutable_tree()->set_ancestors("\1\3\6\x8\x10"); }, kInvalid,
                "tree.ancestors[2] lacks row 0, expected the ancestors of row 1"},
        BadStep{"TreeOfTwoParents",
                [](auto& s) { s.mutable_tree()->set_ancestors("\1\2\7\x8\x10"); }, kInvalid,
                "tree.ancestors[2] names row 0, expected the ancestors of row 1"},
        BadStep{"TreeWithoutKeys",
                [](auto& s) {
                  s.mutable_tree()->set_ancestors("\1\2\4\x8\x10");
                  s.clear_k();
                  s.clear_v();
                },
                kInvalid, "k is missing, expected the rows to append with a tree"},
        BadStep{"TreeWithoutQueries",
                [](auto& s) {
                  s.mutable_tree()->set_ancestors("\1\2\4\x8\x10");
                  s.clear_q();
                },
                kInvalid, "q is missing, expected it with a tree"},
        BadStep{"TreeOfFewerQueries",
                [](auto& s) {
                  s.mutable_tree()->set_ancestors("\1\2\4\x8");
                  Reshape(s.mutable_q(), {4, s.q().shape(1), s.q().shape(2)});
                },
                kInvalid, "q.shape has 4 rows, expected 5, as k, with a tree"},
        BadStep{"TreeAtAPosition",
                [](auto& s) {
                  s.mutable_tree()->set_ancestors("\1\2\4\x8\x10");
                  s.set_first_query_position(10);
                },
                kInvalid, "first_query_position is given, expected none with a tree"},
        BadStep{"TreeUpToAnEnd",
                [](auto& s) {
                  s.mutable_tree()->set_ancestors("\1\2\4\x8\x10");
                  s.set_kv_end(15);
                },
                kInvalid, "kv_end is given, expected none with a tree"},
        BadStep{"TreeThatBeginsInItself",
                [](auto& s) {
                  s.mutable_tree()->set_ancestors("\1\2\4\x8\x10");
                  s.set_kv_begin(11);
                },
                kInvalid, "kv_begin is 11, expected at most 10 (expected_position) with a tree"},
        BadStep{"NoPosition", [](auto& s) { s.clear_expected_position(); }, kInvalid,
                "expected_position is missing"},
        BadStep{"KeysAlone", [](auto& s) { s.clear_v(); }, kInvalid, "v is missing"},
        BadStep{"ValuesAlone", [](auto& s) { s.clear_k(); }, kInvalid, "k is missing"},
        BadStep{"Nothing",
                [](auto& s) {
                  s.clear_q();
                  s.clear_k();
                  s.clear_v();
                },
                kInvalid, "q, k and v are missing"},
        BadStep{"KeyHeads",
                [](auto& s) {
                  Reshape(s.mutable_k(), {5, 3, 32});
                },
                kInvalid, "k.shape is [5, 3, 32], expected [num_tokens, 2, 32]"},
        BadStep{"ValueTokens",
                [](auto& s) {
                  Reshape(s.mutable_v(), {4, 2, 32});
                },
                kInvalid, "v.shape is [4, 2, 32], expected 5 tokens, as k"},
        BadStep{"KeyDType",
                [](auto& s) {
                  Reshape(s.mutable_k(), {5, 2, 32}, v1::DTYPE_BOOL);
                },
                kInvalid, "k.dtype is DTYPE_BOOL"},
        BadStep{"KeyBytes", [](auto& s) { s.mutable_k()->mutable_data()->pop_back(); }, kInvalid,
                "k.data has 1279 bytes, expected 1280"},
        BadStep{"QueryDim",
                [](auto& s) {
                  Reshape(s.mutable_q(), {5, 4, 31});
                },
                kInvalid, "q.shape is [5, 4, 31], expected [q_len, num_q_heads, 32]"},
        BadStep{"QueryHeads",
                [](auto& s) {
                  Reshape(s.mutable_q(), {5, 3, 32});
                },
                kInvalid,
                "steps[0].q.shape is [5, 3, 32], expected a multiple of the session's 2 KV heads"},
        BadStep{"Int8Rows", [](auto& s) { s.mutable_k()->set_dtype(v1::DTYPE_INT8); }, kInvalid,
                "k.dtype is DTYPE_INT8, expected DTYPE_FLOAT32"},
        BadStep{"Float8Rows", [](auto& s) { s.mutable_v()->set_dtype(v1::DTYPE_FLOAT8_E4M3); },
                kInvalid, "v.dtype is DTYPE_FLOAT8_E4M3, expected DTYPE_FLOAT32"},
        BadStep{"Float8Query", [](auto& s) { s.mutable_q()->set_dtype(v1::DTYPE_FLOAT8_E4M3); },
                kInvalid, "q.dtype is DTYPE_FLOAT8_E4M3, expected DTYPE_FLOAT32"},
        BadStep{"QueryDType", [](auto& s) { s.mutable_q()->set_dtype(v1::DTYPE_UNSPECIFIED); },
                kInvalid, "q.dtype is DTYPE_UNSPECIFIED"},
        BadStep{"NaNScale",
                [](auto& s) {
                  s.mutable_config()->set_softmax_scale(std::numeric_limits<float>::quiet_NaN());
                },
                kInvalid, "steps[0].config.softmax_scale is nan"},
        BadStep{
            "QueryPositionAbsurd",
            [](auto& s) { s.set_first_query_position(std::numeric_limits<std::int64_t>::min()); },
            kInvalid, "first_query_position is -9223372036854775808"},
        BadStep{"MaskRows",
                [](auto& s) {
                  Reshape(s.mutable_mask(), {4, 15}, v1::DTYPE_BOOL);
                },
                kInvalid, "steps[0].mask.shape is [4, 15], expected 1 or 5 at axis 0"},
        BadStep{
            "MaskKeys",
            [](auto& s) {
              Reshape(s.mutable_mask(), {5, 10}, v1::DTYPE_BOOL);
            },
            kInvalid,
            "steps[0].mask.shape ends with 10, expected 1 or 15, the keys from 0 to the attended "
            "length"},
        BadStep{"MaskKeysOfARange",
                [](auto& s) {
                  s.set_kv_begin(4);
                  s.set_kv_end(12);
                  Reshape(s.mutable_mask(), {5, 8}, v1::DTYPE_BOOL);
                },
                kInvalid,
                "mask.shape ends with 8, expected 1 or 12, the keys from 0 to kv_end, those before "
                "kv_begin included"},
        BadStep{"BiasKeys",
                [](auto& s) {
                  Reshape(s.mutable_bias(), {4, 5, 16});
                },
                kInvalid, "bias.shape ends with 16"},
        BadStep{"MaskWithoutQuery",
                [](auto& s) {
                  s.clear_q();
                  Reshape(s.mutable_mask(), {5, 15}, v1::DTYPE_BOOL);
                },
                kInvalid, "q is missing, expected it with a mask"},
        BadStep{"RangeNegative", [](auto& s) { s.set_kv_begin(-1); }, kInvalid, "kv_begin is -1"},
        BadStep{"RangeBackwards",
                [](auto& s) {
                  s.set_kv_begin(9);
                  s.set_kv_end(8);
                },
                kInvalid, "kv_begin is 9, expected at most kv_end, 8"},
        BadStep{"RangeBeyondTheEnd", [](auto& s) { s.set_kv_end(16); }, kInvalid,
                "kv_end is 16, expected at most the attended length 15"}),
    [](const auto& info) { return std::string(info.param.name); });

struct BadCreate {
  const char* name;
  std::function<void(v1::CreateSessionRequest&)> spoil;
  const char* message;
};

class BadCreateTest : public ServiceFixture, public ::testing::WithParamInterface<BadCreate> {};

TEST_P(BadCreateTest, TheFieldIsNamedAndTheNextGoodSessionIsMade) {
  v1::CreateSessionRequest request = MakeCreateRequest({});
  GetParam().spoil(request);
  v1::CreateSessionResponse response;
  EXPECT_THAT(shared_server().sessions().CreateSession(NewContext().get(), request, &response),
              FailsWith(kInvalid, GetParam().message));
  MustCreate(shared_server());
}

INSTANTIATE_TEST_SUITE_P(
    Fields, BadCreateTest,
    ::testing::Values(
        BadCreate{"NoGeometry", [](auto& r) { r.clear_geometry(); }, "geometry is missing"},
        BadCreate{"NoLayers", [](auto& r) { r.mutable_geometry()->set_num_layers(0); },
                  "geometry.num_layers is 0, expected 1 to 1024"},
        BadCreate{"TooManyLayers", [](auto& r) { r.mutable_geometry()->set_num_layers(1025); },
                  "geometry.num_layers is 1025"},
        BadCreate{"NoHeads", [](auto& r) { r.mutable_geometry()->set_num_kv_heads(0); },
                  "geometry.num_kv_heads is 0"},
        BadCreate{"TooManyHeads", [](auto& r) { r.mutable_geometry()->set_num_kv_heads(1 << 17); },
                  "geometry.num_kv_heads is 131072"},
        BadCreate{"KeyDim", [](auto& r) { r.mutable_geometry()->set_head_dim_qk(577); },
                  "geometry.head_dim_qk is 577, expected 1 to 576"},
        BadCreate{"ValueDim", [](auto& r) { r.mutable_geometry()->set_head_dim_v(-1); },
                  "geometry.head_dim_v is -1"},
        BadCreate{"LongPrefix",
                  [](auto& r) {
                    r.mutable_geometry()->set_value_is_key_prefix(true);
                    r.mutable_geometry()->set_head_dim_v(33);
                  },
                  "geometry.head_dim_v is 33, expected 1 to head_dim_qk (32)"},
        BadCreate{"NoDType", [](auto& r) { r.mutable_geometry()->clear_kv_dtype(); },
                  "geometry.kv_dtype is DTYPE_UNSPECIFIED"},
        BadCreate{"BoolDType", [](auto& r) { r.mutable_geometry()->set_kv_dtype(v1::DTYPE_BOOL); },
                  "geometry.kv_dtype is DTYPE_BOOL"},
        BadCreate{"UnknownDType",
                  [](auto& r) { r.mutable_geometry()->set_kv_dtype(v1::DType(99)); },
                  "geometry.kv_dtype is 99, expected DTYPE_FLOAT32, DTYPE_FLOAT16, DTYPE_BFLOAT16, "
                  "DTYPE_INT8 or DTYPE_FLOAT8_E4M3"},
        BadCreate{"TtlZero", [](auto& r) { r.mutable_ttl(); }, "ttl is 0"},
        BadCreate{"TtlNegative", [](auto& r) { r.mutable_ttl()->set_seconds(-5); }, "ttl is -5s"},
        BadCreate{
            "TtlAbsurd",
            [](auto& r) { r.mutable_ttl()->set_seconds(std::numeric_limits<std::int64_t>::max()); },
            "ttl is "},
        BadCreate{"TokensNegative", [](auto& r) { r.set_expected_tokens(-1); },
                  "expected_tokens is -1"}),
    [](const auto& info) { return std::string(info.param.name); });

class BadSessionTest : public ServiceFixture {};

TEST_F(BadSessionTest, AStepRequestNeedsAStep) {
  v1::StepResponse response;
  EXPECT_THAT(shared_server().sessions().Step(NewContext().get(), {}, &response),
              FailsWith(kInvalid, "steps has 0 entries, expected 1 to"));
  ExpectServes(shared_server());
}

TEST_F(BadSessionTest, PageSizesHaveBounds) {
  for (const int page_size : {-1, 1001}) {
    v1::ListSessionsRequest request;
    request.set_page_size(page_size);
    v1::ListSessionsResponse response;
    EXPECT_THAT(shared_server().sessions().ListSessions(NewContext().get(), request, &response),
                FailsWith(kInvalid, "page_size is " + std::to_string(page_size)));
  }
}

TEST_F(BadSessionTest, SessionsAreCountedForATenantAndForAll) {
  TestServer own([](server::ServerConfig& config) {
    config.max_sessions_per_tenant = 2;
    config.max_sessions = 3;
  });
  const auto create = [&](const std::string& tenant) {
    v1::CreateSessionResponse response;
    return own.sessions().CreateSession(NewContext(tenant).get(), MakeCreateRequest({}), &response);
  };
  const v1::SessionHandle handle = MustCreate(own, {}, "a").handle();
  MustCreate(own, {}, "a");
  const grpc::Status of_tenant = create("a");
  EXPECT_THAT(of_tenant, FailsBecause(grpc::RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED"));
  EXPECT_THAT(of_tenant, FailsWith(grpc::RESOURCE_EXHAUSTED, "its limit sessions (2)"));
  MustCreate(own, {}, "b");
  EXPECT_THAT(create("c"), FailsBecause(grpc::RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED"));
  EXPECT_TRUE(Delete(own, handle, "a").ok());
  EXPECT_TRUE(create("c").ok());
  ExpectServes(own);
}

TEST_F(BadSessionTest, NaNInACacheStaysInItsSession) {
  const v1::AttendRequest prompt = MakePrompt(20);
  const v1::SessionHandle clean = MustCreate(shared_server()).handle();
  const v1::SessionHandle poisoned = MustCreate(shared_server()).handle();
  v1::AttendRequest nans = prompt;
  for (v1::Tensor* tensor : {nans.mutable_k(), nans.mutable_v()}) {
    for (std::int64_t i = 0; i < NumElements(*tensor); ++i) {
      SetElement(tensor, i, std::numeric_limits<float>::quiet_NaN());
    }
  }
  for (std::int64_t token = 0; token < 20; ++token) {
    v1::StepRequest request;
    *request.add_steps() = MakeStep(nans, poisoned, token, token + 1);
    *request.add_steps() = MakeAppend(prompt, clean, token, token + 1);
    v1::StepResponse response;
    ASSERT_TRUE(shared_server().sessions().Step(NewContext().get(), request, &response).ok());
  }
  const v1::SessionStepResult result = MustStep(shared_server(), MakeAttend(prompt, clean, 0, 20));
  EXPECT_EQ(FindMismatch(prompt, AsResponse(result)), "");
  // A page that held NaN is clean for the session that gets it next.
  EXPECT_TRUE(Delete(shared_server(), poisoned).ok());
  const v1::SessionHandle next = MustCreate(shared_server()).handle();
  EXPECT_EQ(FindMismatch(prompt, Feed(shared_server(), prompt, next, 7)), "");
}

class ExplainTest : public ServiceFixture {
 protected:
  static v1::ExplainRequest Good() {
    v1::ExplainRequest request;
    request.set_num_q_heads(8);
    request.set_num_kv_heads(2);
    request.set_head_dim_qk(64);
    request.set_head_dim_v(64);
    request.set_dtype(v1::DTYPE_BFLOAT16);
    request.set_q_len(10);
    request.set_kv_len(100);
    return request;
  }
  static grpc::Status Explain(const v1::ExplainRequest& request, v1::ExplainResponse* response) {
    return shared_server().info().Explain(NewContext("", absl::Seconds(10)).get(), request,
                                          response);
  }
};

TEST_F(ExplainTest, ArithmeticFollowsFromTheShapes) {
  v1::ExplainResponse response;
  ASSERT_TRUE(Explain(Good(), &response).ok());
  EXPECT_TRUE(response.is_supported());
  EXPECT_EQ(response.flops(), 2.0 * 128 * 8 * 10 * 100);
  EXPECT_EQ(response.kv_bytes(), 100.0 * 2 * 128 * 2);
  EXPECT_EQ(response.io_bytes(), 10.0 * 8 * 128 * 2);
  EXPECT_FALSE(response.kernel().empty());
  EXPECT_GT(response.roofline_seconds(), 0);
}

TEST_F(ExplainTest, TheLongestLengthsAreAnsweredAtOnce) {
  v1::ExplainRequest request = Good();
  request.mutable_config()->set_is_causal(true);
  request.mutable_config()->set_window_left(1'000'003);
  request.mutable_config()->set_sink_tokens(77);
  request.set_q_len((std::int64_t{1} << 40) - 12345);
  request.set_kv_len(std::int64_t{1} << 40);
  v1::ExplainResponse response;
  const grpc::Status status = Explain(request, &response);
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_GT(response.flops(), 0);
}

TEST_F(ExplainTest, WrongFieldsAreNamed) {
  v1::ExplainResponse response;
  v1::ExplainRequest request = Good();
  request.set_num_q_heads(7);
  EXPECT_THAT(Explain(request, &response), FailsWith(kInvalid, "num_q_heads is 7"));
  request = Good();
  request.set_q_len(-1);
  EXPECT_THAT(Explain(request, &response), FailsWith(kInvalid, "q_len is -1"));
  request = Good();
  request.clear_dtype();
  EXPECT_THAT(Explain(request, &response), FailsWith(kInvalid, "dtype is DTYPE_UNSPECIFIED"));
  request = Good();
  request.set_first_query_position(std::numeric_limits<std::int64_t>::min());
  EXPECT_THAT(Explain(request, &response), FailsWith(kInvalid, "first_query_position"));
}

}  // namespace
}  // namespace attention::testing
