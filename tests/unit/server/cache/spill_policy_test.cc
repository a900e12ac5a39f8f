#include "server/cache/spill_policy.h"

#include <gmock/gmock.h>

#include <string>

#include "tests/support/fake_clock.h"

namespace attention::server {
namespace {

using ::testing::ElementsAreArray;

struct Row {
  std::string name;
  // Bytes, and seconds since the last use.
  std::vector<std::pair<std::size_t, int>> caches;
  std::size_t needed;
  std::size_t host_bytes;
  std::vector<std::size_t> expected;
};

// The caches must have been idle for 10 s.
const Row kRows[] = {
    {"nobody is there", {}, 1, 100, {}},
    {"the longest idle goes first", {{10, 20}, {10, 60}, {10, 30}}, 1, 100, {1, 2, 0}},
    {"who is in use stays", {{10, 9}, {10, 10}, {10, 0}}, 1, 100, {1}},
    {"of those alike the largest", {{10, 20}, {30, 20}, {20, 20}}, 1, 100, {1, 2, 0}},
    {"who holds nothing gives nothing", {{0, 60}, {10, 20}}, 1, 100, {1}},
    {"too little to be worth it", {{10, 20}, {10, 60}}, 21, 100, {}},
    {"just enough", {{10, 20}, {10, 60}}, 20, 100, {1, 0}},
    {"the host is full", {{10, 60}}, 1, 9, {}},
    {"the host takes what still fits", {{30, 60}, {10, 50}, {20, 40}}, 1, 35, {0}},
    {"a smaller one in place of one too large", {{50, 60}, {10, 50}}, 5, 20, {1}},
};

TEST(SpillPolicyTest, ChoosesByIdlenessWithinWhatTheHostTakes) {
  FakeClock clock;
  for (const Row& row : kRows) {
    std::vector<SpillCandidate> candidates;
    for (const auto& [bytes, idle] : row.caches) {
      candidates.push_back({bytes, clock.Now() - absl::Seconds(idle)});
    }
    EXPECT_THAT(
        ChooseSpills(candidates, row.needed, clock.Now(), {absl::Seconds(10), row.host_bytes}),
        ElementsAreArray(row.expected))
        << row.name;
  }
}

TEST(SpillPolicyTest, WhoIsLeftAloneBecomesIdle) {
  FakeClock clock;
  const std::vector<SpillCandidate> candidates = {{10, clock.Now()}};
  const SpillLimits limits{absl::Seconds(10), 100};
  EXPECT_TRUE(ChooseSpills(candidates, 1, clock.Now(), limits).empty());
  clock.Advance(absl::Seconds(10));
  EXPECT_EQ(ChooseSpills(candidates, 1, clock.Now(), limits).size(), 1u);
}

}  // namespace
}  // namespace attention::server
