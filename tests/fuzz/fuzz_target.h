// The parts of a fuzzing target: valid messages to start from, a message of its type to mutate,
// and libFuzzer's entry point. Each target's source is linked either with libFuzzer or with the
// fixed-seed driver (mutation_test.cc).
#pragma once

#include <google/protobuf/message.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace attention::fuzz {

// Serialised valid messages.
std::vector<std::string> SeedMessages();

std::unique_ptr<google::protobuf::Message> NewMessage();

// How far the inputs of this process came.
struct Progress {
  std::int64_t parsed = 0;
  std::int64_t computed = 0;  // decoded and run
};
const Progress& progress();

}  // namespace attention::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);
