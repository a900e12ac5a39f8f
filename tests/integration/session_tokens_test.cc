// Tokens of sessions through the wire: those that are let go, drafts that are accepted, and rows
// that are read back.
#include <vector>

#include "tests/support/session_driver.h"

namespace attention::testing {
namespace {

constexpr int kInvalid = grpc::INVALID_ARGUMENT;
constexpr int kFailedPrecondition = grpc::FAILED_PRECONDITION;
constexpr std::int64_t kLength = 120;
using Tokens = std::vector<std::int64_t>;

v1::Tensor RowsAt(const v1::Tensor& tensor, const Tokens& tokens) {
  v1::Tensor rows = Rows(tensor, 0, 0);
  for (const std::int64_t token : tokens) AppendRows(Rows(tensor, token, token + 1), &rows);
  return rows;
}

// The rows of these tokens as a prompt of its own.
v1::AttendRequest PromptOf(const v1::AttendRequest& prompt, const Tokens& tokens) {
  v1::AttendRequest part = prompt;
  *part.mutable_q() = RowsAt(prompt.q(), tokens);
  *part.mutable_k() = RowsAt(prompt.k(), tokens);
  *part.mutable_v() = RowsAt(prompt.v(), tokens);
  return part;
}

Tokens Range(std::int64_t begin, std::int64_t end) {
  Tokens tokens;
  for (std::int64_t i = begin; i < end; ++i) tokens.push_back(i);
  return tokens;
}

Tokens Joined(Tokens first, const Tokens& second) {
  first.insert(first.end(), second.begin(), second.end());
  return first;
}

v1::KeptTokens Kept(const Tokens& tokens, std::int64_t num_tokens) {
  v1::KeptTokens kept;
  kept.set_num_tokens(num_tokens);
  kept.mutable_kept()->assign(static_cast<std::size_t>((num_tokens + 7) / 8), '\0');
  for (const std::int64_t token : tokens) {
    char& byte = (*kept.mutable_kept())[static_cast<std::size_t>(token / 8)];
    byte = static_cast<char>(byte | 1 << (token % 8));
  }
  return kept;
}

v1::KeepTokensRequest KeepOf(const v1::SessionHandle& handle,
                             const std::vector<v1::KeptTokens>& kept) {
  v1::KeepTokensRequest request;
  *request.mutable_handle() = handle;
  for (const v1::KeptTokens& tokens : kept) *request.add_keep() = tokens;
  return request;
}

class SessionTokensTest : public ServiceFixture {
 protected:
  static grpc::Status Keep(const v1::KeepTokensRequest& request, v1::Session* session = nullptr) {
    v1::KeepTokensResponse response;
    const grpc::Status status =
        shared_server().sessions().KeepTokens(NewContext().get(), request, &response);
    if (session != nullptr) *session = response.session();
    return status;
  }
  static grpc::Status Truncate(const v1::TruncateSessionRequest& request,
                               v1::Session* session = nullptr) {
    v1::TruncateSessionResponse response;
    const grpc::Status status =
        shared_server().sessions().TruncateSession(NewContext().get(), request, &response);
    if (session != nullptr) *session = response.session();
    return status;
  }
  static grpc::Status Read(const v1::GetKeysValuesRequest& request,
                           v1::GetKeysValuesResponse* response) {
    return shared_server().sessions().GetKeysValues(NewContext().get(), request, response);
  }
  static v1::GetKeysValuesRequest ReadOf(const v1::SessionHandle& handle, int layer = 0) {
    v1::GetKeysValuesRequest request;
    *request.mutable_handle() = handle;
    request.set_layer(layer);
    return request;
  }
  // The reason of a step that is refused.
  static std::string ReasonOf(const v1::SessionStep& step) {
    return RunStep(shared_server(), step).error().reason();
  }
};

// --- KeepTokens ---

class KeptTypesTest : public SessionTokensTest, public ::testing::WithParamInterface<v1::DType> {};

TEST_P(KeptTypesTest, WhatFollowsAttendsOverTheTokensThatStay) {
  const SessionSpec spec{.kv_dtype = GetParam()};
  const v1::AttendRequest prompt = MakePrompt(kLength);
  Tokens kept;
  for (std::int64_t i = 0; i < 100; i += i % 7 == 0 ? 1 : 3) kept.push_back(i);
  const auto num_kept = static_cast<std::int64_t>(kept.size());
  const v1::SessionHandle handle = MustFill(shared_server(), prompt, 100, spec);
  v1::Session session;
  const std::int64_t bytes = MustGet(shared_server(), handle).kv_bytes();
  ASSERT_TRUE(Keep(KeepOf(handle, {Kept(kept, 100)}), &session).ok());
  EXPECT_EQ(session.committed_length(), 100) << "positions stay";
  ASSERT_EQ(session.layer_tokens_size(), 1);
  EXPECT_EQ(session.layer_tokens(0), num_kept);
  EXPECT_LT(session.kv_bytes(), bytes) << "pages are free";

  // A session that never had the others.
  const v1::AttendRequest rest = PromptOf(prompt, Joined(kept, Range(100, kLength)));
  const v1::SessionHandle alone = MustFill(shared_server(), rest, num_kept, spec);
  const v1::AttendResponse expected = AsResponse(
      MustStep(shared_server(), MakeStep(rest, alone, num_kept, num_kept + kLength - 100)));
  const v1::AttendResponse answer =
      AsResponse(MustStep(shared_server(), MakeStep(prompt, handle, 100, kLength)));
  EXPECT_TRUE(SameAnswer(answer, expected));
  const v1::SessionStepResult again =
      MustStep(shared_server(), MakeStep(prompt, handle, 100, kLength));
  EXPECT_TRUE(again.is_replay());
  EXPECT_TRUE(SameAnswer(AsResponse(again), expected));
}

INSTANTIATE_TEST_SUITE_P(Types, KeptTypesTest,
                         ::testing::Values(v1::DTYPE_FLOAT32, v1::DTYPE_FLOAT16, v1::DTYPE_BFLOAT16,
                                           v1::DTYPE_INT8, v1::DTYPE_FLOAT8_E4M3));

TEST_F(SessionTokensTest, EachHeadKeepsTokensOfItsOwn) {
  const v1::AttendRequest prompt = MakePrompt(kLength);
  const v1::SessionHandle handle = MustFill(shared_server(), prompt, 100);
  const Tokens of_heads[] = {Range(0, 40), Range(55, 95)};
  std::vector<v1::KeptTokens> kept;
  for (int head = 0; head < 2; ++head) {
    kept.push_back(Kept(of_heads[head], 100));
    kept.back().set_kv_head(head);
  }
  ASSERT_TRUE(Keep(KeepOf(handle, kept)).ok());
  const v1::AttendResponse answer =
      AsResponse(MustStep(shared_server(), MakeStep(prompt, handle, 100, kLength)));
  for (int head = 0; head < 2; ++head) {
    // A session in which all heads keep these.
    const v1::SessionHandle other = MustFill(shared_server(), prompt, 100);
    ASSERT_TRUE(Keep(KeepOf(other, {Kept(of_heads[head], 100)})).ok());
    const v1::AttendResponse same =
        AsResponse(MustStep(shared_server(), MakeStep(prompt, other, 100, kLength)));
    const std::int64_t heads = answer.output().shape(1), dim = answer.output().shape(2);
    for (std::int64_t i = 0; i < NumElements(answer.output()); ++i) {
      if (i / dim % heads * 2 / heads != head) continue;
      ASSERT_EQ(ElementAt(answer.output(), i), ElementAt(same.output(), i)) << i;
    }
  }
}

TEST_F(SessionTokensTest, ColumnsAreThoseOfTheTokensThatStay) {
  const v1::AttendRequest prompt = MakePrompt(kLength);
  const v1::SessionHandle handle = MustFill(shared_server(), prompt, 100);
  ASSERT_TRUE(Keep(KeepOf(handle, {Kept(Range(10, 30), 100)})).ok());
  v1::SessionStep step = MakeStep(prompt, handle, 100, 101);
  step.mutable_returns()->set_column_sums(true);
  EXPECT_EQ(MustStep(shared_server(), step).column_sums().shape(0), 21);
}

TEST_F(SessionTokensTest, OthersThatReadTheSamePagesKeepThem) {
  const v1::AttendRequest prompt = MakePrompt(kLength);
  const v1::SessionHandle handle = MustFill(shared_server(), prompt, 100);
  v1::ForkSessionRequest fork;
  *fork.mutable_handle() = handle;
  v1::ForkSessionResponse copies;
  ASSERT_TRUE(shared_server().sessions().ForkSession(NewContext().get(), fork, &copies).ok());
  const v1::SessionHandle copy = copies.sessions(0).handle();
  ASSERT_TRUE(Keep(KeepOf(handle, {Kept(Range(60, 100), 100)})).ok());
  const v1::AttendResponse whole =
      AsResponse(MustStep(shared_server(), MakeStep(prompt, copy, 100, kLength)));
  const v1::AttendResponse alone = AsResponse(MustStep(
      shared_server(), MakeStep(prompt, MustFill(shared_server(), prompt, 100), 100, kLength)));
  EXPECT_TRUE(SameAnswer(whole, alone));
}

TEST_F(SessionTokensTest, AChangeThatIsRepeatedIsMadeOnce) {
  const v1::SessionHandle handle = MustFill(shared_server(), MakePrompt(kLength), 100);
  v1::KeepTokensRequest request = KeepOf(handle, {Kept(Range(0, 50), 100)});
  request.set_change_id(5);
  v1::Session session;
  ASSERT_TRUE(Keep(request).ok());
  ASSERT_TRUE(Keep(request, &session).ok());
  EXPECT_EQ(session.layer_tokens(0), 50);
  request.set_change_id(6);
  EXPECT_THAT(Keep(request), FailsBecause(kFailedPrecondition, "POSITION_MISMATCH"));
}

TEST_F(SessionTokensTest, PositionsThatAreNotToldApartAnyMoreAreRefused) {
  const v1::AttendRequest prompt = MakePrompt(kLength);
  const v1::SessionHandle handle = MustFill(shared_server(), prompt, 100);
  ASSERT_TRUE(Keep(KeepOf(handle, {Kept(Range(40, 90), 100)})).ok());
  EXPECT_EQ(ReasonOf(MakeStep(prompt, handle, 50, 60)), "TOKENS_DROPPED");
  EXPECT_EQ(ReasonOf(MakeAttend(prompt, handle, 60, 70)), "TOKENS_DROPPED");
  v1::SessionStep step = MakeStep(prompt, handle, 100, 110);
  step.mutable_config()->set_window_left(20);
  EXPECT_EQ(ReasonOf(step), "TOKENS_DROPPED");
  v1::TruncateSessionRequest cut;
  *cut.mutable_handle() = handle;
  cut.set_length(99);
  EXPECT_THAT(Truncate(cut), FailsBecause(kFailedPrecondition, "TOKENS_DROPPED"));
  cut.set_length(100);
  EXPECT_TRUE(Truncate(cut).ok());
  EXPECT_EQ(MustStep(shared_server(), MakeStep(prompt, handle, 100, 110)).position(), 110)
      << "refused steps have changed nothing";
}

TEST_F(SessionTokensTest, WhatIsKeptIsCheckedByField) {
  const v1::SessionHandle handle =
      MustFill(shared_server(), MakePrompt(kLength), 100, {.num_layers = 2});
  const auto keep = [&](v1::KeptTokens tokens) { return Keep(KeepOf(handle, {tokens})); };
  EXPECT_THAT(Keep(KeepOf(handle, {})), FailsWith(kInvalid, "keep is empty"));
  v1::KeptTokens tokens = Kept(Range(0, 9), 100);
  tokens.mutable_kept()->push_back('\0');
  EXPECT_THAT(keep(tokens), FailsWith(kInvalid, "keep[0].kept has 14 bytes, expected 13"));
  tokens = Kept(Range(0, 9), 100);
  tokens.mutable_kept()->back() = '\x10';
  EXPECT_THAT(keep(tokens), FailsWith(kInvalid, "keep[0].kept has bits behind token 99"));
  tokens = Kept({}, 100);
  tokens.set_num_tokens(-1);
  EXPECT_THAT(keep(tokens), FailsWith(kInvalid, "keep[0].num_tokens is -1"));
  tokens = Kept({}, 100);
  tokens.set_layer(2);
  EXPECT_THAT(keep(tokens), FailsWith(kInvalid, "keep[0].layer is 2, expected 0 to 1"));
  tokens.set_layer(1);
  tokens.set_kv_head(2);
  EXPECT_THAT(keep(tokens), FailsWith(kInvalid, "keep[0].kv_head is 2, expected 0 to 1"));
  tokens.set_kv_head(1);
  EXPECT_THAT(keep(tokens), FailsWith(kInvalid, "where 1 heads have entries, expected all 2"));
  v1::KeptTokens other = Kept({1}, 100);
  other.set_layer(1);
  other.set_kv_head(0);
  EXPECT_THAT(Keep(KeepOf(handle, {tokens, other})),
              FailsWith(kInvalid, "KV head 1 of layer 1 keeps 0 tokens, expected 1"));
  EXPECT_THAT(Keep(KeepOf(handle, {tokens, tokens})), FailsWith(kInvalid, "keep[1] is about"));
  EXPECT_THAT(Keep(KeepOf(handle, {Kept({}, 100), tokens})),
              FailsWith(kInvalid, "keep[1] is about layer 1, as keep[0] is"));
  EXPECT_THAT(keep(Kept({}, 99)), FailsBecause(kFailedPrecondition, "POSITION_MISMATCH"));
  EXPECT_EQ(MustGet(shared_server(), handle).layer_tokens_size(), 0) << "all is there";
}

// --- Accepted drafts ---

TEST_F(SessionTokensTest, AcceptedDraftsStayInTheirOrderInAllLayers) {
  const v1::AttendRequest prompt = MakePrompt(kLength);
  const v1::SessionHandle handle = MustFill(shared_server(), prompt, 90, {.num_layers = 2});
  v1::TruncateSessionRequest cut;
  *cut.mutable_handle() = handle;
  cut.set_length(50);
  for (const int token : {1, 4, 30}) cut.add_accepted(token);
  cut.set_change_id(3);
  v1::Session session;
  ASSERT_TRUE(Truncate(cut, &session).ok());
  EXPECT_EQ(session.committed_length(), 53);
  ASSERT_TRUE(Truncate(cut, &session).ok()) << "a repetition";
  EXPECT_EQ(session.committed_length(), 53);
  const v1::AttendRequest path =
      PromptOf(prompt, Joined(Joined(Range(0, 50), {51, 54, 80}), Range(90, 100)));
  const v1::SessionHandle alone = MustFill(shared_server(), path, 53, {.num_layers = 2});
  for (int layer = 0; layer < 2; ++layer) {
    const v1::AttendResponse expected =
        AsResponse(MustStep(shared_server(), MakeStep(path, alone, 53, 63, layer)));
    const v1::AttendResponse answer =
        AsResponse(MustStep(shared_server(), MakeStep(path, handle, 53, 63, layer)));
    EXPECT_TRUE(SameAnswer(answer, expected)) << layer;
  }
}

TEST_F(SessionTokensTest, DraftsThatAreNotThereAreRefused) {
  const v1::SessionHandle handle = MustFill(shared_server(), MakePrompt(kLength), 60);
  v1::TruncateSessionRequest cut;
  *cut.mutable_handle() = handle;
  cut.set_length(50);
  cut.add_accepted(10);
  EXPECT_THAT(Truncate(cut), FailsBecause(kFailedPrecondition, "POSITION_MISMATCH"));
  cut.set_accepted(0, 4);
  cut.add_accepted(4);
  EXPECT_THAT(Truncate(cut), FailsWith(kInvalid, "accepted[1] is 4, expected at least 5"));
  cut.clear_accepted();
  cut.add_accepted(-1);
  EXPECT_THAT(Truncate(cut), FailsWith(kInvalid, "accepted[0] is -1, expected at least 0"));
  EXPECT_EQ(MustGet(shared_server(), handle).committed_length(), 60);
}

// --- Rows read back ---

TEST_F(SessionTokensTest, RowsOfTheCachesTypeComeBackAsTheyWere) {
  for (const v1::DType dtype : {v1::DTYPE_FLOAT32, v1::DTYPE_FLOAT16, v1::DTYPE_BFLOAT16}) {
    const v1::AttendRequest prompt = MakePrompt(kLength, dtype);
    const v1::SessionHandle handle =
        MustFill(shared_server(), prompt, kLength, {.kv_dtype = dtype});
    v1::GetKeysValuesResponse all, part;
    ASSERT_TRUE(Read(ReadOf(handle), &all).ok());
    EXPECT_TRUE(SameBits(all.k(), prompt.k()));
    EXPECT_TRUE(SameBits(all.v(), prompt.v()));
    v1::GetKeysValuesRequest request = ReadOf(handle);
    request.set_begin(33);
    request.set_end(77);
    ASSERT_TRUE(Read(request, &part).ok());
    EXPECT_TRUE(SameBits(part.k(), Rows(prompt.k(), 33, 77)));
    EXPECT_TRUE(SameBits(part.v(), Rows(prompt.v(), 33, 77)));
  }
}

TEST_F(SessionTokensTest, RowsWithScalesComeBackAsAttentionReadsThem) {
  const v1::AttendRequest prompt = MakePrompt(kLength);
  for (const v1::DType dtype : {v1::DTYPE_INT8, v1::DTYPE_FLOAT8_E4M3}) {
    const v1::SessionHandle handle =
        MustFill(shared_server(), prompt, kLength, {.kv_dtype = dtype});
    v1::GetKeysValuesResponse rows;
    ASSERT_TRUE(Read(ReadOf(handle), &rows).ok());
    ASSERT_EQ(rows.k().dtype(), v1::DTYPE_FLOAT32);
    for (std::int64_t i = 0; i < NumElements(prompt.k()); ++i) {
      ASSERT_NEAR(ElementAt(rows.k(), i), ElementAt(prompt.k(), i), 0.3) << i;
      ASSERT_NEAR(ElementAt(rows.v(), i), ElementAt(prompt.v(), i), 0.3) << i;
    }
    // So rows that are stored again are the same.
    v1::AttendRequest stored = prompt;
    *stored.mutable_k() = rows.k();
    *stored.mutable_v() = rows.v();
    v1::GetKeysValuesResponse again;
    ASSERT_TRUE(
        Read(ReadOf(MustFill(shared_server(), stored, kLength, {.kv_dtype = v1::DTYPE_FLOAT32})),
             &again)
            .ok());
    EXPECT_TRUE(SameBits(again.k(), rows.k()));
  }
}

TEST_F(SessionTokensTest, RowsThatAreNotThereAreRefused) {
  const v1::SessionHandle handle = MustFill(shared_server(), MakePrompt(kLength), 60);
  v1::GetKeysValuesResponse rows;
  v1::GetKeysValuesRequest request = ReadOf(handle, 1);
  EXPECT_THAT(Read(request, &rows), FailsWith(kInvalid, "layer is 1, expected 0 to 0"));
  request = ReadOf(handle);
  request.set_end(61);
  EXPECT_THAT(Read(request, &rows), FailsBecause(kFailedPrecondition, "POSITION_MISMATCH"));
  request.set_begin(62);
  EXPECT_THAT(Read(request, &rows), FailsWith(kInvalid, "begin is 62, expected 0 to end, 61"));
  request.set_begin(60);
  request.set_end(60);
  ASSERT_TRUE(Read(request, &rows).ok());
  EXPECT_EQ(rows.k().shape(0), 0);
}

}  // namespace
}  // namespace attention::testing
