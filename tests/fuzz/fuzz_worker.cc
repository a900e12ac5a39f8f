#include "tests/fuzz/fuzz_worker.h"

#include <algorithm>
#include <random>
#include <utility>
#include <vector>

#include "kernels/base/check.h"
#include "kernels/registry.h"
#include "server/engine/worker.h"

namespace attention::fuzz {

AttentionBackend& Backend() {
  static const std::unique_ptr<AttentionBackend> backend = [] {
    auto made = MakeBackend("cpu", {.num_threads = 1});
    ATTENTION_CHECK(made.ok());
    return *std::move(made);
  }();
  return *backend;
}

server::BufferPool& Buffers() {
  static server::BufferPool pool(Backend().memory(), /*max_idle_bytes=*/std::size_t{16} << 20);
  return pool;
}

grpc::ByteBuffer Receive(const std::uint8_t* data, std::size_t size) {
  std::uint32_t seed = 2166136261;  // FNV-1a, so that the same input is cut the same way
  for (std::size_t i = 0; i < size; ++i) seed = (seed ^ data[i]) * 16777619;
  std::mt19937 random(seed);
  std::vector<grpc::Slice> slices;
  for (std::size_t begin = 0; begin < size;) {
    const std::size_t longest = random() % 4 == 0 ? 8 : 512;
    const std::size_t count = std::min<std::size_t>(size - begin, random() % longest);
    slices.emplace_back(data + begin, count);  // may be empty
    begin += count;
  }
  return {slices.data(), slices.size()};
}

server::AttentionResult Run(std::unique_ptr<server::AttentionRequest> request) {
  static const server::RealClock clock;
  static server::ServerMetrics metrics;
  static server::Worker worker(Backend(), clock, metrics);
  server::AttentionResult answer;
  int num_completions = 0;
  request->completion = [&](std::unique_ptr<server::AttentionRequest>,
                            server::AttentionResult result) {
    answer = std::move(result);
    ++num_completions;
  };
  server::Batch batch;
  batch.requests.push_back(std::move(request));
  batch.taken = clock.Now();
  worker.Execute(std::move(batch));
  ATTENTION_CHECK(num_completions == 1);
  // A task that the decoder lets through is one that the kernels take: they would refuse it for all
  // requests of its batch. Steps may still be refused, each for itself.
  ATTENTION_CHECK(answer.status.ok());
  return answer;
}

}  // namespace attention::fuzz
