#include "tests/simt/stream_queues.h"

#include <gmock/gmock.h>

#include <string>

namespace attention::simt {
namespace {

using cuda::Stream;

class StreamQueuesTest : public ::testing::Test {
 protected:
  static EagerStreams Eager(Stream stream) { return 1u << static_cast<int>(stream); }
  std::function<void()> Log(char name) {
    return [this, name] { log_ += name; };
  }
  std::string log_;
};

TEST_F(StreamQueuesTest, LazyStreamsDoWhatSomebodyWaitsForAndNoMore) {
  StreamQueues queues(1, 0);
  queues.Enqueue(Stream::kUpload, Log('a'));
  queues.Enqueue(Stream::kCompute, Log('b'));
  const StreamQueues::Point point = queues.End(Stream::kCompute);
  queues.Enqueue(Stream::kCompute, Log('c'));
  EXPECT_EQ(log_, "");
  queues.Reach(point);
  EXPECT_EQ(log_, "b") << "the upload was not waited for";
  queues.Drain();
  EXPECT_EQ(log_, "bac");
  EXPECT_TRUE(queues.is_idle());
}

TEST_F(StreamQueuesTest, EagerStreamsRunAheadAsFarAsEventsAllow) {
  StreamQueues queues(1, Eager(Stream::kDownload));
  queues.Enqueue(Stream::kCompute, Log('a'));
  queues.Enqueue(Stream::kDownload, Log('x'));
  EXPECT_EQ(log_, "x") << "nothing says that it is to come after a";
  queues.Wait(Stream::kDownload, queues.End(Stream::kCompute));
  queues.Enqueue(Stream::kDownload, Log('y'));
  EXPECT_EQ(log_, "x");
  queues.Reach(queues.End(Stream::kDownload));
  EXPECT_EQ(log_, "xay");
}

TEST_F(StreamQueuesTest, AnEventIsThePlaceWhereItWasRecorded) {
  StreamQueues queues(1, 0);
  queues.Enqueue(Stream::kUpload, Log('a'));
  const StreamQueues::Point first = queues.End(Stream::kUpload);
  queues.Enqueue(Stream::kUpload, Log('b'));
  queues.Wait(Stream::kCompute, first);
  queues.Enqueue(Stream::kCompute, Log('c'));
  queues.Reach(queues.End(Stream::kCompute));
  EXPECT_EQ(log_, "ac");
}

TEST_F(StreamQueuesTest, WithoutAChoiceEveryOrderOfTwoStreamsComesUp) {
  bool has_ab = false, has_ba = false;
  for (std::uint32_t seed = 0; seed < 50; ++seed) {
    log_.clear();
    StreamQueues queues(seed, std::nullopt);
    queues.Enqueue(Stream::kUpload, Log('a'));
    queues.Enqueue(Stream::kCompute, Log('b'));
    queues.Reach(queues.End(Stream::kCompute));
    queues.Drain();
    (log_ == "ab" ? has_ab : has_ba) = true;
  }
  EXPECT_TRUE(has_ab && has_ba);
}

}  // namespace
}  // namespace attention::simt
