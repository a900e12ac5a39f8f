// Steps whose rows are drafts of a tree, through the wire and through the SDK.
#include <string>
#include <vector>

#include "tests/support/session_driver.h"

namespace attention::testing {
namespace {

constexpr std::int64_t kPrefix = 600;

// The row that each of the rows follows.
const std::vector<int> kParents = {-1, 0, 0, 1, 1, 2, 5, -1, 7, 3};

std::string PackedAncestors(const std::vector<int>& parents) {
  const std::size_t row_bytes = (parents.size() + 7) / 8;
  std::string packed(parents.size() * row_bytes, '\0');
  for (std::size_t row = 0; row < parents.size(); ++row) {
    for (int at = static_cast<int>(row); at >= 0; at = parents[static_cast<std::size_t>(at)]) {
      packed[row * row_bytes + static_cast<std::size_t>(at) / 8] |= static_cast<char>(1 << at % 8);
    }
  }
  return packed;
}

std::vector<std::int64_t> PathTo(int row) {
  std::vector<std::int64_t> path;
  for (int at = row; at >= 0; at = kParents[static_cast<std::size_t>(at)]) {
    path.insert(path.begin(), at);
  }
  return path;
}

v1::SessionStep TreeStep(const v1::AttendRequest& prompt, const v1::SessionHandle& handle) {
  const auto rows = static_cast<std::int64_t>(kParents.size());
  v1::SessionStep step = MakeStep(prompt, handle, kPrefix, kPrefix + rows);
  step.mutable_tree()->set_ancestors(PackedAncestors(kParents));
  return step;
}

class DraftTreeSessionTest : public ServiceFixture {
 protected:
  static v1::AttendRequest Prompt() {
    return MakePrompt(kPrefix + static_cast<std::int64_t>(kParents.size()));
  }
  static v1::SessionHandle Filled(const v1::AttendRequest& prompt) {
    const v1::SessionHandle handle = MustCreate(shared_server()).handle();
    MustStep(shared_server(), MakeAppend(prompt, handle, 0, kPrefix));
    return handle;
  }
};

void ExpectNear(const v1::Tensor& a, std::int64_t row_a, const v1::Tensor& b, std::int64_t row_b) {
  const v1::Tensor left = Rows(a, row_a, row_a + 1), right = Rows(b, row_b, row_b + 1);
  ASSERT_EQ(NumElements(left), NumElements(right));
  for (std::int64_t i = 0; i < NumElements(left); ++i) {
    ASSERT_NEAR(ElementAt(left, i), ElementAt(right, i), 2e-5) << i;
  }
}

// Each row answers as the last step of a session that was given its branch alone.
TEST_F(DraftTreeSessionTest, EachDraftAnswersAsItsBranchAlone) {
  const v1::AttendRequest prompt = Prompt();
  const v1::SessionHandle handle = Filled(prompt);
  const v1::SessionStepResult tree = MustStep(shared_server(), TreeStep(prompt, handle));
  EXPECT_EQ(tree.position(), kPrefix + static_cast<std::int64_t>(kParents.size()));
  for (int row = 0; row < static_cast<int>(kParents.size()); ++row) {
    SCOPED_TRACE(row);
    const v1::SessionHandle branch = Filled(prompt);
    v1::SessionStepResult last;
    std::int64_t position = kPrefix;
    for (std::int64_t draft : PathTo(row)) {
      v1::SessionStep step = MakeStep(prompt, branch, kPrefix + draft, kPrefix + draft + 1);
      step.set_expected_position(position++);
      last = MustStep(shared_server(), step);
    }
    ExpectNear(tree.output(), row, last.output(), 0);
    // A branch whose drafts lie one behind the other lies as it does alone.
    const std::vector<std::int64_t> path = PathTo(row);
    if (path.back() == static_cast<std::int64_t>(path.size()) - 1) {
      EXPECT_TRUE(SameBits(Rows(tree.output(), row, row + 1), last.output()));
    }
  }
}

TEST_F(DraftTreeSessionTest, ARepetitionAnswersWithTheSameBits) {
  const v1::AttendRequest prompt = Prompt();
  const v1::SessionHandle handle = Filled(prompt);
  const v1::SessionStep step = TreeStep(prompt, handle);
  const v1::AttendResponse first = AsResponse(MustStep(shared_server(), step));
  const v1::SessionStepResult again = MustStep(shared_server(), step);
  EXPECT_TRUE(again.is_replay());
  EXPECT_TRUE(SameAnswer(AsResponse(again), first));
}

TEST_F(DraftTreeSessionTest, TheSdkTakesTheRowThatEachDraftFollows) {
  const v1::AttendRequest prompt = Prompt();
  const v1::SessionHandle handle = Filled(prompt);
  const v1::SessionStep wire = TreeStep(prompt, handle);
  const v1::SessionStepResult expected = MustStep(shared_server(), wire);
  const auto view = [](const v1::Tensor& tensor) {
    return client::TensorView(tensor.data().data(), client::DType::kFloat32, ShapeOf(tensor));
  };
  auto client = shared_server().NewClient();
  auto session =
      client->CreateSession({.geometry = {.num_kv_heads = 2, .head_dim_qk = 32, .head_dim_v = 32}});
  ASSERT_TRUE(session.ok()) << session.status();
  const v1::SessionStep filled = MakeAppend(prompt, handle, 0, kPrefix);
  ASSERT_TRUE(session->Step({.k = view(filled.k()), .v = view(filled.v())}).ok());
  client::LayerStep step{.q = view(wire.q()), .k = view(wire.k()), .v = view(wire.v())};
  step.config.is_causal = wire.config().is_causal();
  step.parents = {0};
  EXPECT_EQ(session->Step(step).status().code(), absl::StatusCode::kInvalidArgument);
  step.parents = kParents;
  const auto result = session->Step(step);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(std::string(result->output.bytes()), expected.output().data());
}

}  // namespace
}  // namespace attention::testing
