// Drives a fuzzing target from a fixed seed, where libFuzzer is not at hand: the same inputs in
// each run, as far as time allows.
#include <google/protobuf/stubs/logging.h>
#include <gtest/gtest.h>

#include <chrono>

#include "tests/fuzz/fuzz_target.h"
#include "tests/fuzz/message_mutator.h"

namespace attention::fuzz {
namespace {

constexpr int kInputs = 30'000;
constexpr std::chrono::seconds kTimeLimit{8};  // a sanitizer's build may not get through all
constexpr std::size_t kMaxCorpus = 400;

void RunOne(const std::string& input) {
  // An allocation of exactly the input's size, so that reading past it is seen.
  const std::vector<std::uint8_t> bytes(input.begin(), input.end());
  LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
}

// A change of one message of the corpus.
std::string NextInput(const std::vector<std::string>& corpus, Random& random) {
  std::string input = corpus[random() % corpus.size()];
  const auto message = NewMessage();
  if (random() % 8 != 0 && message->ParseFromString(input)) {
    Mutate(message.get(), random);
    if (random() % 4 != 0) RepairTensors(message.get(), random);
    input = message->SerializeAsString();
  }
  if (random() % 8 == 0) MutateBytes(&input, random);
  return input;
}

TEST(MutationTest, NoMessageBreaksTheDecoderOrWhatRunsBehindIt) {
  const auto end = std::chrono::steady_clock::now() + kTimeLimit;
  Random random(20240607);
  google::protobuf::SetLogHandler(nullptr);  // it reports each message that is none
  std::vector<std::string> corpus = SeedMessages();
  for (const std::string& seed : corpus) {
    const std::int64_t before = progress().computed;
    RunOne(seed);
    EXPECT_GT(progress().computed, before) << "a seed must be valid";
  }
  int num_inputs = 0;
  for (; num_inputs < kInputs && std::chrono::steady_clock::now() < end; ++num_inputs) {
    const std::string input = NextInput(corpus, random);
    const std::int64_t before = progress().computed;
    RunOne(input);
    // An input that was computed is worth mutating; in a full corpus it replaces another find.
    if (progress().computed == before) continue;
    if (corpus.size() < kMaxCorpus) {
      corpus.push_back(input);
    } else {
      corpus[SeedMessages().size() + random() % (kMaxCorpus - SeedMessages().size())] = input;
    }
  }
  RecordProperty("inputs", num_inputs);
  std::printf("%d inputs, %ld parsed, %ld computed\n", num_inputs,
              static_cast<long>(progress().parsed), static_cast<long>(progress().computed));
  EXPECT_GT(progress().computed, num_inputs / 20) << "the mutations hardly get past the decoder";
}

}  // namespace
}  // namespace attention::fuzz
