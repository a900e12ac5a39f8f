#include "server/observe/log_output.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "kernels/base/check.h"

namespace attention::server {
namespace {

using ::testing::ElementsAre;

// A pipe to read the log from.
class LogOutputTest : public ::testing::Test {
 protected:
  static int Open(int (&ends)[2]) {
    ATTENTION_CHECK(pipe2(ends, O_CLOEXEC) == 0);
    ATTENTION_CHECK(fcntl(ends[0], F_SETFL, O_NONBLOCK) == 0);
    return ends[1];
  }
  ~LogOutputTest() override {
    for (const int end : ends_) close(end);
  }
  // The lines that have come since the last call.
  std::vector<std::string> ReadLines() {
    std::string text;
    char buffer[4096];
    for (ssize_t count; (count = read(ends_[0], buffer, sizeof(buffer))) > 0;) {
      text.append(buffer, static_cast<std::size_t>(count));
    }
    return absl::StrSplit(text, '\n', absl::SkipEmpty());
  }

  int ends_[2];
  LogOutput output_{Open(ends_)};
};

TEST_F(LogOutputTest, LinesComeInOrder) {
  output_.Write("one\n");
  output_.Write("two\n");
  EXPECT_THAT(ReadLines(), ElementsAre("one", "two"));
  EXPECT_EQ(output_.TakeLost(), 0);
}

TEST_F(LogOutputTest, WhatNobodyReadsIsLostAndCountedOnceThereIsRoom) {
  constexpr std::size_t kLines = 10'000;
  const std::string line = std::string(99, '.') + "\n";
  for (std::size_t i = 0; i < kLines; ++i) output_.Write(line);
  EXPECT_EQ(output_.TakeLost(), 0) << "no room to tell";
  const std::size_t num_read = ReadLines().size();
  EXPECT_GT(num_read, 0u);
  EXPECT_EQ(output_.TakeLost(), static_cast<std::int64_t>(kLines - num_read));
  EXPECT_EQ(output_.TakeLost(), 0) << "told once";
  output_.Write("next\n");
  EXPECT_THAT(ReadLines(), ElementsAre("next"));
}

TEST_F(LogOutputTest, ALineThatIsCutOffLeavesTheNextOneALine) {
  output_.Write(std::string(1 << 20, '.') + "\n");
  const std::vector<std::string> cut = ReadLines();
  ASSERT_EQ(cut.size(), 1u);
  EXPECT_LT(cut[0].size(), std::size_t{1} << 20);
  EXPECT_EQ(output_.TakeLost(), 1);
  output_.Write("next\n");
  EXPECT_THAT(ReadLines(), ElementsAre("next"));
}

TEST(FullLogTest, WhatADiskHasNoRoomForIsLost) {
  const int full = open("/dev/full", O_WRONLY | O_CLOEXEC);
  ASSERT_GE(full, 0);
  LogOutput output(full);
  output.Write("one\n");
  output.Write("two\n");
  EXPECT_EQ(output.TakeLost(), 2);
  close(full);
}

}  // namespace
}  // namespace attention::server
