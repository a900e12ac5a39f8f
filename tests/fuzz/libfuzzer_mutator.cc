// Structure-aware mutation under libFuzzer: its own byte mutations take turns with ours.
#include <algorithm>

#include "tests/fuzz/fuzz_target.h"
#include "tests/fuzz/message_mutator.h"

extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t* data, std::size_t size, std::size_t max);

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size,
                                               std::size_t max_size, unsigned int seed) {
  attention::fuzz::Random random(seed);
  const auto message = attention::fuzz::NewMessage();
  if (random() % 8 == 0 || !message->ParseFromArray(data, static_cast<int>(size))) {
    return LLVMFuzzerMutate(data, size, max_size);
  }
  if (size == 0) {
    const auto seeds = attention::fuzz::SeedMessages();
    message->ParseFromString(seeds[random() % seeds.size()]);
  }
  attention::fuzz::Mutate(message.get(), random);
  if (random() % 4 != 0) attention::fuzz::RepairTensors(message.get(), random);
  const std::string bytes = message->SerializeAsString();
  if (bytes.size() > max_size) return LLVMFuzzerMutate(data, size, max_size);
  std::copy(bytes.begin(), bytes.end(), data);
  return bytes.size();
}
