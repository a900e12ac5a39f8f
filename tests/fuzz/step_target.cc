// StepRequest from arbitrary bytes, against a session that holds tokens already: decoded, resolved
// and computed as the service does.
#include <algorithm>
#include <vector>

#include "attention/v1/session_service.pb.h"
#include "kernels/base/check.h"
#include "server/session/session_table.h"
#include "server/wire/step_decoder.h"
#include "tests/fuzz/fuzz_target.h"
#include "tests/fuzz/fuzz_worker.h"
#include "tests/support/wire_tensor.h"

namespace attention::fuzz {
namespace {

constexpr double kMaxFlops = 2e6;
constexpr std::int64_t kTokens = 20;  // in layer 0 when a request arrives; layer 1 is empty
constexpr KvGeometry kGeometry{2, 8, 6, DType::kBFloat16};

Progress the_progress;

v1::SessionStep MakeStep(std::int64_t position, std::int64_t tokens, int layer, v1::DType dtype) {
  v1::SessionStep step;
  step.set_layer(layer);
  step.set_expected_position(position);
  *step.mutable_k() = testing::RandomTensor(dtype, {tokens, 2, 8}, 1);
  *step.mutable_v() = testing::RandomTensor(dtype, {tokens, 2, 6}, 2);
  return step;
}

// The request's steps in one batch, as far as they decode; how many of them ran.
std::int64_t Execute(const server::Session& session, const codec::ReceivedMessage& received,
                     const v1::StepRequest& wire) {
  server::RequestTensors tensors(received, Buffers());
  const auto admit = [](std::int64_t) -> absl::StatusOr<server::ResultLedger::Charge> {
    return nullptr;
  };
  server::ResponseAllocator allocator(Buffers(), server::kNobody, 1 << 20, admit);
  std::int64_t num_tokens = 0;
  std::vector<server::DecodedStep> steps;
  auto request = std::make_unique<server::AttentionRequest>();
  for (int i = 0; i < wire.steps_size(); ++i) {
    const server::KvCache& cache = *session.cache;
    const int layer = wire.steps(i).layer();
    server::StepTarget target{session.cache, cache.device(), {}, cache.num_layers()};
    if (layer >= 0 && layer < target.num_layers) {
      target.shape = cache.shape().layer(layer);
      target.length = cache.length(layer) + num_tokens;
    }
    auto decoded = server::DecodeStep(wire.steps(i), target, tensors, allocator.budget());
    if (!decoded.ok() || decoded->work.flops > kMaxFlops) continue;
    num_tokens += decoded->step.num_tokens();
    server::AllocateResult(allocator, decoded->step, decoded->output, decoded->lse);
    request->steps.push_back(decoded->step);
    steps.push_back(*std::move(decoded));  // keeps the outputs
  }
  const server::AttentionResult result = Run(std::move(request));
  return std::count_if(result.steps.begin(), result.steps.end(),
                       [](const server::StepOutcome& outcome) { return outcome.status.ok(); });
}

void RunOnNewSession(const codec::ReceivedMessage& received, const v1::StepRequest& wire) {
  server::PagePool pool(Backend().memory(), std::size_t{1} << 20, std::size_t{1} << 18);
  const server::KvCacheFactory caches({{Backend(), pool}}, /*page_size=*/16);
  server::Session session;
  auto cache = caches.Create(kGeometry, /*num_layers=*/2, /*expected_tokens=*/0);
  ATTENTION_CHECK(cache.ok());
  session.cache = *std::move(cache);
  v1::StepRequest prefill;
  *prefill.add_steps() = MakeStep(0, kTokens, 0, v1::DTYPE_FLOAT32);
  ATTENTION_CHECK(Execute(session, codec::ReceivedMessage(), prefill) == 1);
  ATTENTION_CHECK(session.cache->length(0) == kTokens);
  the_progress.computed += Execute(session, received, wire);
}

}  // namespace

std::vector<std::string> SeedMessages() {
  v1::StepRequest both;
  v1::SessionStep* step = both.add_steps();
  *step = MakeStep(kTokens, 3, 0, v1::DTYPE_BFLOAT16);
  *step->mutable_q() = testing::RandomTensor(v1::DTYPE_FLOAT32, {3, 4, 8}, 3);
  step->mutable_config()->set_is_causal(true);
  step->mutable_returns()->set_lse(true);
  *both.add_steps() = MakeStep(kTokens + 3, 14, 0, v1::DTYPE_FLOAT16);
  *both.add_steps() = MakeStep(0, 2, 1, v1::DTYPE_FLOAT32);

  v1::StepRequest attend;
  step = attend.add_steps();
  step->set_expected_position(18);
  step->set_kv_begin(3);
  step->set_kv_end(17);
  step->set_first_query_position(9);
  *step->mutable_q() = testing::RandomTensor(v1::DTYPE_BFLOAT16, {2, 2, 8}, 4);
  *step->mutable_bias() = testing::RandomTensor(v1::DTYPE_FLOAT32, {2, 2, 17}, 5);
  *step->mutable_mask() = testing::RandomMask({2, 17}, 6);
  *step->mutable_config()->mutable_sink_logits() = testing::RandomTensor(v1::DTYPE_FLOAT32, {2}, 7);
  step->mutable_returns()->set_column_sums(true);
  return {both.SerializeAsString(), attend.SerializeAsString()};
}

std::unique_ptr<google::protobuf::Message> NewMessage() {
  return std::make_unique<v1::StepRequest>();
}

const Progress& progress() { return the_progress; }

}  // namespace attention::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  attention::codec::ReceivedMessage received;
  attention::v1::StepRequest request;
  if (!received.Parse(attention::fuzz::Receive(data, size), &request).ok()) return 0;
  ++attention::fuzz::the_progress.parsed;
  attention::fuzz::RunOnNewSession(received, request);
  return 0;
}
