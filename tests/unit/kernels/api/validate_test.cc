// Every refusal names the field, the actual and the expected value.
#include "kernels/api/validate.h"

#include <gmock/gmock.h>

#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

namespace attention {
namespace {

AttentionTask ValidTask() {
  static float data[16];
  AttentionTask task;
  task.params.num_q_heads = 4;
  task.params.num_kv_heads = 2;
  task.params.head_dim_qk = 8;
  task.params.head_dim_v = 8;
  task.params.softmax_scale = 1;
  task.q_len = 1;
  task.kv_len = 3;
  task.q.data = task.k.data = task.v.data = data;
  task.o.data = data;
  return task;
}

void ExpectRefused(const std::function<void(AttentionTask&)>& change, const std::string& message) {
  AttentionTask task = ValidTask();
  change(task);
  const absl::Status status = ValidateTask(task);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(std::string(status.message()), message);
}

TEST(ValidateTest, AValidTaskPasses) { EXPECT_TRUE(ValidateTask(ValidTask()).ok()); }

TEST(ValidateTest, HeadsAndDims) {
  ExpectRefused([](auto& t) { t.params.num_q_heads = 0; }, "num_q_heads is 0, expected 1 to 65536");
  ExpectRefused([](auto& t) { t.params.num_kv_heads = -1; },
                "num_kv_heads is -1, expected 1 to 65536");
  ExpectRefused([](auto& t) { t.params.num_q_heads = 3; },
                "num_q_heads is 3, expected a multiple of num_kv_heads (2)");
  ExpectRefused([](auto& t) { t.params.head_dim_qk = 577; },
                "head_dim_qk is 577, expected 1 to 576");
  ExpectRefused([](auto& t) { t.params.head_dim_v = 0; }, "head_dim_v is 0, expected 1 to 512");
}

TEST(ValidateTest, PrefixesOfKeysAreNoLongerThanTheyAndComeWithoutValues) {
  AttentionTask latent = ValidTask();
  latent.params.value_is_key_prefix = true;
  latent.params.head_dim_v = latent.params.head_dim_qk;
  latent.v = {};
  EXPECT_TRUE(ValidateTask(latent).ok());
  ExpectRefused(
      [&](auto& t) {
        t = latent;
        t.params.head_dim_qk = 24;
        t.params.head_dim_v = 25;
      },
      "head_dim_v is 25, expected 1 to head_dim_qk (24), as values are prefixes of the keys");
  ExpectRefused(
      [&](auto& t) {
        t = latent;
        t.v = t.k;
      },
      "v is given, expected none, as values are prefixes of the keys");
}

TEST(ValidateTest, ScalarsMustBeFinite) {
  ExpectRefused([](auto& t) { t.params.softmax_scale = std::nanf(""); },
                "softmax_scale is nan, expected a finite number");
  ExpectRefused([](auto& t) { t.params.soft_cap = -1; },
                "soft_cap is -1, expected 0 (none) or a finite number above");
  ExpectRefused([](auto& t) { t.params.soft_cap = std::numeric_limits<float>::infinity(); },
                "soft_cap is inf, expected 0 (none) or a finite number above");
}

TEST(ValidateTest, WindowsAndLengths) {
  const std::string max = std::to_string(kMaxPosition);
  ExpectRefused([](auto& t) { t.params.window_left = -2; },
                "window_left is -2, expected -1 to " + max);
  ExpectRefused([](auto& t) { t.params.sink_tokens = -1; },
                "sink_tokens is -1, expected 0 to " + max);
  ExpectRefused([](auto& t) { t.q_len = -1; }, "q_len is -1, expected 0 to " + max);
  ExpectRefused([](auto& t) { t.kv_begin = 4; }, "kv_begin is 4, expected 0 to 3");
  ExpectRefused([](auto& t) { t.first_query_position = kMaxPosition + 1; },
                "first_query_position is 1099511627777, expected -" + max + " to " + max);
}

TEST(ValidateTest, MissingTensors) {
  ExpectRefused([](auto& t) { t.q.data = nullptr; }, "q is missing, expected a tensor");
  ExpectRefused([](auto& t) { t.k.data = nullptr; }, "k is missing, expected a tensor");
  ExpectRefused([](auto& t) { t.v.data = nullptr; }, "v is missing, expected a tensor");
  ExpectRefused([](auto& t) { t.o.data = nullptr; }, "o is missing, expected a buffer");
}

TEST(ValidateTest, NothingIsMissingWithoutQueriesOrKeys) {
  AttentionTask task = ValidTask();
  task.q_len = 0;
  task.q.data = nullptr;
  EXPECT_TRUE(ValidateTask(task).ok());
  task = ValidTask();
  task.kv_len = 0;
  task.k.data = task.v.data = nullptr;
  EXPECT_TRUE(ValidateTask(task).ok());
}

TEST(ValidateTest, PagesMustHoldTheTokens) {
  static void* pages[1] = {};
  ExpectRefused(
      [](auto& t) {
        t.kv_pages = {pages, 1, 24};
      },
      "page_size is 24, expected a positive multiple of 16");
  ExpectRefused(
      [](auto& t) {
        t.kv_pages = {pages, 1, 16}, t.kv_len = 17;
      },
      "kv_len is 17, expected at most the 16 tokens that the pages hold");
}

void ExpectAppendRefused(const std::function<void(KvAppendTask&)>& change,
                         const std::string& message) {
  static void* pages[1] = {};
  static const float data[1] = {};
  const RowsView rows{data};
  KvAppendTask task{.geometry = {1, 8, 8, DType::kFloat32},
                    .destination = {pages, 1, 16},
                    .position = 4,
                    .num_tokens = 10,
                    .k = rows,
                    .v = rows};
  EXPECT_TRUE(ValidateAppend(task).ok());
  change(task);
  const absl::Status status = ValidateAppend(task);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(std::string(status.message()), message);
}

TEST(ValidateAppendTest, PagesTokensAndRows) {
  ExpectAppendRefused([](auto& t) { t.destination.page_size = 8; },
                      "page_size is 8, expected a positive multiple of 16");
  ExpectAppendRefused([](auto& t) { t.num_tokens = 13; },
                      "tokens are [4, 4 + 13), expected a part of [0, 16)");
  ExpectAppendRefused([](auto& t) { t.destination.pages = nullptr; }, "pages are missing");
  ExpectAppendRefused([](auto& t) { t.k.data = nullptr; }, "k is missing");
  ExpectAppendRefused([](auto& t) { t.v.dtype = DType::kInt8; },
                      "v is rows of int8, expected float32, float16 or bfloat16");
  ExpectAppendRefused([](auto& t) { t.k.dtype = DType::kFloat8E4M3; },
                      "k is rows of float8_e4m3, expected float32, float16 or bfloat16");
}

TEST(ValidateAppendTest, ValuesThatArePrefixesOfKeysAreNotGiven) {
  ExpectAppendRefused([](auto& t) { t.geometry.value_is_key_prefix = true; },
                      "v is given, expected none, as values are prefixes of the keys");
  ExpectAppendRefused(
      [](auto& t) {
        static const float data[1] = {};
        static const RowsPiece pieces[] = {{0, RowsView{data}}};
        t.geometry.value_is_key_prefix = true;
        t.v = {};
        t.v_pieces = pieces;
      },
      "v is given, expected none, as values are prefixes of the keys");
}

TEST(ValidateAppendTest, PiecesBeginAtZeroAndAscend) {
  static const float data[1] = {};
  const auto expect = [](std::vector<RowsPiece> pieces, const std::string& message) {
    ExpectAppendRefused([&](auto& t) { t.v_pieces = pieces; }, message);
  };
  const RowsView rows{data};
  expect({{1, rows}}, "v_pieces[0].begin_row is 1, expected 0");
  expect({{0, rows}, {3, rows}, {3, rows}}, "v_pieces[2].begin_row is 3, expected 4 to 9");
  expect({{0, rows}, {10, rows}}, "v_pieces[1].begin_row is 10, expected 1 to 9");
  expect({{0, rows}, {5, {}}}, "v_pieces[1] is missing");
  expect({{0, {data, DType::kInt8}}},
         "v_pieces[0] is rows of int8, expected float32, float16 or bfloat16");
}

TEST(ValidateTest, ErrorsOfSeveralTasksBeginWithTheTask) {
  AttentionTask wrong = ValidTask();
  wrong.params.head_dim_v = 0;
  EXPECT_EQ(std::string(ValidateTasks(std::vector{ValidTask(), wrong}).message()),
            "task 1: head_dim_v is 0, expected 1 to 512");
}

TEST(ValidateTest, WeightsNeedNoOutputButABufferForTheirRows) {
  float weights[12];
  WeightsTask task{.attention = ValidTask(), .q_begin = 0, .q_end = 1, .weights = weights};
  task.attention.o.data = nullptr;
  EXPECT_TRUE(ValidateWeights(task).ok());
  task.weights = nullptr;
  EXPECT_EQ(std::string(ValidateWeights(task).message()), "weights is missing, expected a buffer");
  task.q_end = 2;
  EXPECT_EQ(std::string(ValidateWeights(task).message()),
            "rows are [0, 2), expected a part of [0, 1)");
}

}  // namespace
}  // namespace attention
