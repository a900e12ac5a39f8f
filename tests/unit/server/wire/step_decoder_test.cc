#include "server/wire/step_decoder.h"

#include <gmock/gmock.h>

#include <functional>

#include "kernels/reference/reference_backend.h"
#include "server/cache/kv_cache.h"
#include "server/cache/kv_cache_factory.h"
#include "tests/support/decoding.h"
#include "tests/support/fake_clock.h"

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

class StepDecoderTest : public ::testing::Test {
 protected:
  // Three tokens, four query heads, over a session of two layers with 2 KV heads and dims 8 and 6.
  static v1::SessionStep Wire() {
    v1::SessionStep wire;
    wire.set_layer(1);
    wire.set_expected_position(5);
    Fill(wire.mutable_q(), {3, 4, 8});
    Fill(wire.mutable_k(), {3, 2, 8});
    Fill(wire.mutable_v(), {3, 2, 6});
    return wire;
  }
  absl::StatusOr<DecodedStep> Decode(const v1::SessionStep& wire) {
    return DecodeStep(wire, Target(/*pending_tokens=*/0), decoding_.tensors(), decoding_.budget());
  }
  StepTarget Target(std::int64_t pending_tokens) const {
    return {cache_, cache_->device(), cache_->shape().layer(1), cache_->num_layers(),
            cache_->length(1) + pending_tokens};
  }

  std::unique_ptr<AttentionBackend> backend_ = reference::MakeReferenceBackend();
  PagePool pool_{backend_->memory(), std::size_t{4} << 20};
  KvCacheFactory caches_{{{*backend_, pool_}}, 16};
  std::shared_ptr<KvCache> cache_;
  testing::Decoding decoding_{backend_->memory()};

  void SetUp() override { cache_ = *caches_.Create({2, 8, 6, DType::kBFloat16}, 2, 0); }
};

TEST_F(StepDecoderTest, RowsArePlacedAndTheOutputIsTheResults) {
  v1::SessionStep wire = Wire();
  wire.mutable_k()->mutable_data()->assign(3 * 2 * 8 * 4, 'k');
  auto decoded = Decode(wire);
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  const SessionStep& step = decoded->step;
  EXPECT_EQ(step.layer, 1);
  EXPECT_EQ(step.num_tokens(), 3);
  EXPECT_EQ(
      absl::string_view(static_cast<const char*>(step.append->k.data), wire.k().data().size()),
      wire.k().data());
  AllocateResult(decoding_.allocator(), decoded->step, decoded->output, decoded->lse);
  EXPECT_EQ(step.attend->task.o.data, decoded->output.data());
  EXPECT_EQ(decoded->output.size(), 3u * 4 * 6 * 4);
  EXPECT_EQ(step.attend->task.params.kv_dtype, DType::kBFloat16);
  EXPECT_EQ(step.attend->task.params.dtype, DType::kFloat32);
  EXPECT_GT(decoded->work.flops, 0);
}

TEST_F(StepDecoderTest, AppendOnlyAndAttendOnlyAreLegal) {
  v1::SessionStep wire = Wire();
  wire.clear_q();
  auto decoded = Decode(wire);
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  EXPECT_FALSE(decoded->step.attend.has_value());
  wire = Wire();
  wire.clear_k();
  wire.clear_v();
  wire.clear_expected_position();
  decoded = Decode(wire);
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  EXPECT_FALSE(decoded->step.append.has_value());
}

TEST_F(StepDecoderTest, ALatentCacheTakesKeysAlone) {
  cache_ = *caches_.Create({2, 8, 6, DType::kBFloat16, /*value_is_key_prefix=*/true}, 2, 0);
  v1::SessionStep wire = Wire();
  EXPECT_EQ(Decode(wire).status(),
            absl::InvalidArgumentError(
                "v is given, expected none: the session's values are prefixes of its keys"));
  wire.clear_v();
  const auto decoded = Decode(wire);
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  EXPECT_EQ(decoded->step.num_tokens(), 3);
  EXPECT_EQ(decoded->step.append->v.data, nullptr);
  EXPECT_TRUE(decoded->step.attend->task.params.value_is_key_prefix);
  wire.clear_q();
  EXPECT_TRUE(Decode(wire).ok());
}

// A step that cannot be computed must not make this client or others wait.
TEST_F(StepDecoderTest, APositionBeyondTheLayerIsEstimatedAsTheLayerIs) {
  v1::SessionStep wire = Wire();
  wire.set_expected_position(0);
  const double flops = Decode(wire)->work.flops;
  wire.set_expected_position(std::int64_t{1} << 40);
  EXPECT_EQ(Decode(wire)->work.flops, flops);
  const auto pending =
      DecodeStep(wire, Target(/*pending_tokens=*/7), decoding_.tensors(), decoding_.budget());
  ASSERT_TRUE(pending.ok()) << pending.status();
  EXPECT_GT(pending->work.flops, flops) << "over what the steps before it append, too";
}

TEST_F(StepDecoderTest, ARangeIsEstimatedByItsLength) {
  cache_->Append(1, std::vector<std::uint32_t>(1000));
  v1::SessionStep wire = Wire();
  wire.clear_k();
  wire.clear_v();
  wire.clear_expected_position();
  const double whole = Decode(wire)->work.flops;
  wire.set_kv_begin(100);
  wire.set_kv_end(200);
  EXPECT_DOUBLE_EQ(Decode(wire)->work.flops, whole / 10);
}

TEST_F(StepDecoderTest, ColumnSumsAreCountedByTheLengthThatIsAttendedOver) {
  cache_->Append(1, std::vector<std::uint32_t>(1000));
  v1::SessionStep wire = Wire();
  wire.clear_k();
  wire.clear_v();
  wire.clear_expected_position();
  wire.mutable_returns()->set_column_sums(true);
  const auto count = [&] {
    const std::int64_t before = decoding_.budget().bytes();
    const auto decoded = Decode(wire);
    EXPECT_TRUE(decoded.ok()) << decoded.status();
    EXPECT_GE(*decoded->step.attend->max_column_sum_bytes, decoding_.budget().bytes() - before);
    return decoding_.budget().bytes() - before;
  };
  const std::int64_t output_bytes = 3 * 4 * 6 * 4;
  EXPECT_EQ(count(), output_bytes + 1000 * 4 * 4);
  wire.set_expected_position(600);
  EXPECT_EQ(count(), output_bytes + 600 * 4 * 4);
  wire.set_kv_end(50);
  EXPECT_EQ(count(), output_bytes + 50 * 4 * 4);
}

TEST_F(StepDecoderTest, ResultsOfAllStepsShareOneBudget) {
  cache_->Append(1, std::vector<std::uint32_t>(40'000));  // 640,000 bytes of column sums, of 1 MiB
  v1::SessionStep wire = Wire();
  wire.clear_k();
  wire.clear_v();
  wire.clear_expected_position();
  wire.mutable_returns()->set_column_sums(true);
  EXPECT_TRUE(Decode(wire).ok());
  const absl::Status status = Decode(wire).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("returns.column_sums asks for the keys' rows: 40000 rows of 16 bytes"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("(max-response-bytes)"));
  wire.mutable_returns()->set_column_sums(false);
  EXPECT_TRUE(Decode(wire).ok()) << "what is small still fits";
}

struct BadStep {
  const char* name;
  std::function<void(v1::SessionStep&)> spoil;
  const char* message;
};
class BadStepTest : public StepDecoderTest, public ::testing::WithParamInterface<BadStep> {};

TEST_P(BadStepTest, NamesTheFieldWithActualAndExpected) {
  v1::SessionStep wire = Wire();
  GetParam().spoil(wire);
  const absl::Status status = Decode(wire).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr(GetParam().message));
}

INSTANTIATE_TEST_SUITE_P(
    Fields, BadStepTest,
    ::testing::Values(
        BadStep{"LayerTooLarge", [](auto& s) { s.set_layer(2); }, "layer is 2, expected 0 to 1"},
        BadStep{"LayerNegative", [](auto& s) { s.set_layer(-1); }, "layer is -1"},
        BadStep{"KeyAlone", [](auto& s) { s.clear_v(); }, "v is missing"},
        BadStep{"ValueAlone", [](auto& s) { s.clear_k(); }, "k is missing"},
        BadStep{"Nothing",
                [](auto& s) {
                  s.clear_q();
                  s.clear_k();
                  s.clear_v();
                },
                "q, k and v are missing"},
        BadStep{"NoPosition", [](auto& s) { s.clear_expected_position(); },
                "expected_position is missing"},
        BadStep{"NegativePosition", [](auto& s) { s.set_expected_position(-1); },
                "expected_position is -1"},
        BadStep{"KeyShape",
                [](auto& s) {
                  Fill(s.mutable_k(), {3, 3, 8});
                },
                "k.shape is [3, 3, 8], expected [num_tokens, 2, 8]"},
        BadStep{"ValueShape",
                [](auto& s) {
                  Fill(s.mutable_v(), {3, 2, 8});
                },
                "v.shape is [3, 2, 8], expected [num_tokens, 2, 6]"},
        BadStep{"TokenCounts",
                [](auto& s) {
                  Fill(s.mutable_v(), {2, 2, 6});
                },
                "v.shape is [2, 2, 6], expected 3 tokens, as k"},
        BadStep{"QueryRank",
                [](auto& s) {
                  Fill(s.mutable_q(), {3, 32});
                },
                "q.shape is [3, 32], expected [q_len, num_q_heads, 8]"},
        BadStep{"QueryHeads",
                [](auto& s) {
                  Fill(s.mutable_q(), {3, 3, 8});
                },
                "q.shape is [3, 3, 8], expected a multiple of the session's 2 KV heads, at most "
                "65536, at axis 1 of [tokens, heads, head_dim]"},
        BadStep{"MaskRows",
                [](auto& s) {
                  Fill(s.mutable_mask(), {2, 8}, v1::DTYPE_BOOL);
                },
                "mask.shape is [2, 8], expected 1 or 3 at axis 0 of [queries, keys]"},
        BadStep{"SoftCap", [](auto& s) { s.mutable_config()->set_soft_cap(-2); },
                "config.soft_cap is -2"},
        BadStep{"MaskWithoutQuery",
                [](auto& s) {
                  s.clear_q();
                  Fill(s.mutable_mask(), {3, 8}, v1::DTYPE_BOOL);
                },
                "q is missing, expected it with a mask"},
        BadStep{"Range", [](auto& s) { s.set_kv_begin(-1); }, "kv_begin is -1"}),
    [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace attention::server
