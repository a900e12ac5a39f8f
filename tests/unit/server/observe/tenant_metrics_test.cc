#include "server/observe/tenant_metrics.h"

#include <gmock/gmock.h>

#include "server/observe/metrics_page.h"

namespace attention::server {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;

const auto kIsListed = [](const std::string& tenant) { return tenant == "listed"; };

TEST(TenantMetricsTest, ListedTenantsAndTheLargestOfTheOthersHaveLinesOfTheirOwn) {
  EXPECT_THAT(
      BoundedByTenant({{"a", 5}, {"b", 9}, {"c", 7}, {"d", 1}, {"listed", 2}}, kIsListed, 2),
      ElementsAre(Pair("b", 9), Pair("c", 7), Pair("listed", 2), Pair("other", 6)));
  EXPECT_THAT(BoundedByTenant({{"", 4}, {"a", 5}}, kIsListed, 2),
              ElementsAre(Pair("a", 5), Pair("other", 4)));
  EXPECT_THAT(BoundedByTenant({{"a", 5}}, kIsListed, 0), ElementsAre(Pair("other", 5)));
  EXPECT_TRUE(BoundedByTenant({}, kIsListed, 2).empty());
}

TEST(TenantMetricsTest, ATenantThatIsCalledOtherSharesTheLineOfTheOthers) {
  EXPECT_THAT(BoundedByTenant({{"other", 9}, {"a", 5}, {"b", 4}}, kIsListed, 1),
              ElementsAre(Pair("other", 18)));
}

// A name must not end its label and forge a line.
TEST(TenantMetricsTest, NamesAreEscaped) {
  const LabelledMetric metric{"tenant_sessions", "Sessions of each tenant",
                              LabelledMetric::Kind::kGauge, [] {
                                return std::vector<LabelledValue>{{{{"tenant", "a\"} 1\\"}}, 3}};
                              }};
  EXPECT_THAT(RenderMetrics(ServerMetrics{}, {}, "", {metric}).body,
              HasSubstr("attention_tenant_sessions{tenant=\"a\\\"} 1\\\\\"} 3\n"));
}

}  // namespace
}  // namespace attention::server
