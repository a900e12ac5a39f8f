#include "client/internal/stream/write_queue.h"

#include <gmock/gmock.h>
#include <grpcpp/support/slice.h>

#include <string>

namespace attention::client::internal {
namespace {

using ::testing::ElementsAre;

grpc::ByteBuffer Message(const std::string& text) {
  const grpc::Slice slice(text);
  return {&slice, 1};
}

std::string TextOf(const grpc::ByteBuffer& message) {
  grpc::Slice slice;
  EXPECT_TRUE(message.DumpToSingleSlice(&slice).ok());
  return {reinterpret_cast<const char*>(slice.begin()), slice.size()};
}

std::vector<std::string> WriteAll(WriteQueue& queue) {
  std::vector<std::string> written;
  while (const grpc::ByteBuffer* next = queue.StartNext()) {
    written.push_back(TextOf(*next));
    queue.OnWritten();
  }
  return written;
}

TEST(WriteQueueTest, MessagesAreWrittenInOrderThoseToBeSentAgainFirst) {
  WriteQueue queue;
  queue.Push(Message("c"));
  queue.Push(Message("d"));
  queue.PushFirst({Message("a"), Message("b")});
  EXPECT_EQ(queue.num_waiting(), 4u);
  EXPECT_THAT(WriteAll(queue), ElementsAre("a", "b", "c", "d"));
  EXPECT_EQ(queue.num_waiting(), 0u);
}

// gRPC reads it on a thread of its own. (Leaks are for the address sanitizer to find.)
TEST(WriteQueueTest, AMessageThatIsBeingWrittenIsNotTouched) {
  WriteQueue queue;
  queue.Push(Message("a"));
  queue.Push(Message("d"));
  const grpc::ByteBuffer* written = queue.StartNext();
  EXPECT_EQ(queue.num_waiting(), 1u);
  queue.PushFirst({});
  queue.PushFirst({Message("b"), Message("c")});
  for (int i = 0; i < 100; ++i) queue.Push(Message("e"));
  EXPECT_TRUE(queue.is_writing());
  EXPECT_EQ(TextOf(*written), "a");
  queue.OnWritten();
  EXPECT_FALSE(queue.is_writing());
  EXPECT_EQ(WriteAll(queue).size(), 103u);
}

TEST(WriteQueueTest, ClearLeavesNothing) {
  WriteQueue queue;
  queue.Push(Message("a"));
  queue.Push(Message("b"));
  EXPECT_NE(queue.StartNext(), nullptr);
  queue.Clear();
  EXPECT_FALSE(queue.is_writing());
  EXPECT_EQ(queue.StartNext(), nullptr);
}

}  // namespace
}  // namespace attention::client::internal
