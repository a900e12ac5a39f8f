#include "server/scheduler/step_order.h"

#include <gmock/gmock.h>

#include <memory>
#include <vector>

#include "server/scheduler/work_queue.h"

namespace attention::server {
namespace {

using ::testing::ElementsAre;

constexpr absl::Duration kMs = absl::Milliseconds(1);

// A layer's key; never dereferenced.
std::shared_ptr<KvCache> Cache(int id) {
  return {std::shared_ptr<void>(), reinterpret_cast<KvCache*>(static_cast<std::uintptr_t>(id))};
}

LayerKey Layer(int cache, int layer) { return {Cache(cache).get(), layer}; }

TEST(StepOrderTest, AStepWaitsForWhatIsPendingForItsLayer) {
  StepOrder order;
  const std::vector<LayerKey> layer = {Layer(1, 3)};
  order.Add(layer, /*is_long=*/true);
  EXPECT_TRUE(order.FollowsLong(layer));
  EXPECT_FALSE(order.FollowsLong(std::vector{Layer(1, 2)}));
  EXPECT_FALSE(order.FollowsLong(std::vector{Layer(2, 3)}));
  order.Remove(layer, /*is_long=*/true);
  EXPECT_FALSE(order.FollowsLong(layer));
}

TEST(StepOrderTest, AChangeIsPendingForAllLayersOfItsSession) {
  StepOrder order;
  const std::vector<LayerKey> change = {Layer(2, kAllLayers)};
  order.Add(change, /*is_long=*/false);
  EXPECT_FALSE(order.MayBeginLong(std::vector{Layer(2, 0)}));
  EXPECT_FALSE(order.MayBeginLong(std::vector{Layer(2, 1000)}));
  EXPECT_FALSE(order.MayBeginLong(change));
  EXPECT_TRUE(order.MayBeginLong(std::vector{Layer(1, 0), Layer(3, 0)}));
  order.Remove(change, /*is_long=*/false);
  EXPECT_TRUE(order.MayBeginLong(change));
}

TEST(StepOrderTest, AChangeWaitsForStepsOfEachOfItsLayers) {
  StepOrder order;
  const std::vector<LayerKey> change = {Layer(1, kAllLayers), Layer(2, kAllLayers)};
  for (const LayerKey& layer : {Layer(1, 0), Layer(2, 7)}) {
    order.Add(std::vector{layer}, /*is_long=*/true);
    EXPECT_TRUE(order.FollowsLong(change));
    order.Remove(std::vector{layer}, /*is_long=*/true);
  }
  order.Add(std::vector{Layer(3, 0)}, /*is_long=*/true);
  EXPECT_FALSE(order.FollowsLong(change));
}

// --- Changes in the queue ---

std::unique_ptr<AttentionRequest> Request(std::int64_t id, absl::Duration work = kMs) {
  auto request = std::make_unique<AttentionRequest>();
  request->arrival = absl::FromUnixSeconds(1'000'000);
  request->work = work;
  request->bytes = id;  // tells requests apart
  return request;
}
std::unique_ptr<AttentionRequest> Step(std::int64_t id, int session, int layer,
                                       absl::Duration work = kMs) {
  auto request = Request(id, work);
  request->steps.emplace_back();
  request->steps.back().cache = Cache(session);
  request->steps.back().layer = layer;
  return request;
}
std::unique_ptr<AttentionRequest> Change(std::int64_t id, int session) {
  auto request = Request(id);
  request->change.emplace().caches.push_back(Cache(session));
  return request;
}

class ChangesInTheQueueTest : public ::testing::Test {
 protected:
  // The requests that run next, which is then done.
  std::vector<std::int64_t> Next() {
    Decision decision;
    queue_.Next(absl::FromUnixSeconds(1'000'001), decision);
    std::vector<std::int64_t> ids;
    for (const auto& request : decision.batch) ids.push_back(request->bytes);
    queue_.EndBatch(std::vector<double>(decision.batch.size(), 1));
    if (decision.long_request != nullptr) {
      ids.push_back(decision.long_request->bytes);
      queue_.EndSlice(nullptr, 1);
    }
    return ids;
  }

  WorkQueue queue_{WorkPolicy{.max_batch_work = 5 * kMs, .max_contended_batch_work = 5 * kMs}};
};

TEST_F(ChangesInTheQueueTest, AChangeIsABatchOfItsOwn) {
  queue_.Add(Step(1, 1, 0));
  queue_.Add(Step(2, 2, 0));
  queue_.Add(Change(3, 1));
  queue_.Add(Change(4, 1));
  queue_.Add(Step(5, 1, 0));
  queue_.Add(Step(6, 2, 0));
  EXPECT_THAT(Next(), ElementsAre(1, 2));
  EXPECT_THAT(Next(), ElementsAre(3));
  EXPECT_THAT(Next(), ElementsAre(4));
  EXPECT_THAT(Next(), ElementsAre(5, 6));
  EXPECT_TRUE(queue_.empty());
}

TEST_F(ChangesInTheQueueTest, AChangeWaitsForALongStepOfAnyLayerAndStepsWaitForIt) {
  queue_.Add(Step(1, 1, 7, 10 * kMs));
  queue_.Add(Change(2, 1));
  queue_.Add(Step(3, 1, 0));
  queue_.Add(Change(4, 2));
  EXPECT_THAT(Next(), ElementsAre(4)) << "of another session";
  EXPECT_THAT(Next(), ElementsAre(1));
  EXPECT_THAT(Next(), ElementsAre(2));
  EXPECT_THAT(Next(), ElementsAre(3));
}

TEST_F(ChangesInTheQueueTest, ALongStepWaitsForAChangeBeforeIt) {
  queue_.Add(Change(1, 1));
  queue_.Add(Step(2, 1, 3, 10 * kMs));
  EXPECT_THAT(Next(), ElementsAre(1));
  EXPECT_THAT(Next(), ElementsAre(2));
}

}  // namespace
}  // namespace attention::server
