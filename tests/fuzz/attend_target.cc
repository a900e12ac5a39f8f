// AttendRequest from arbitrary bytes: decoded as the service does, then really computed, so that a
// pointer or a length that the decoder let through shows under the address sanitizer.
#include "attention/v1/attention_service.pb.h"
#include "server/wire/attend_decoder.h"
#include "tests/fuzz/fuzz_target.h"
#include "tests/fuzz/fuzz_worker.h"
#include "tests/support/wire_oracle.h"

namespace attention::fuzz {
namespace {

// More than this is slow under a sanitizer and shows nothing that less does not.
constexpr double kMaxFlops = 2e6;

Progress the_progress;

void RunWeights(server::DecodedAttend& decoded) {
  for (const AttentionTask& task : decoded.tasks) {
    std::vector<float> weights(
        static_cast<std::size_t>(task.q_len * task.params.num_q_heads * task.kv_len));
    auto request = std::make_unique<server::AttentionRequest>();
    request->weights.push_back({task, 0, task.q_len, weights.data()});
    Run(std::move(request));
  }
}

void Execute(const codec::ReceivedMessage& received, const v1::AttendRequest& wire) {
  server::RequestTensors tensors(received, Buffers());
  const auto admit = [](std::int64_t) -> absl::StatusOr<server::ResultLedger::Charge> {
    return nullptr;
  };
  server::ResponseAllocator allocator(Buffers(), server::kNobody, 4 << 20, admit);
  auto decoded = server::DecodeAttend(wire, server::WeightsForm::kInBlocks, tensors, allocator);
  if (!decoded.ok() || decoded->work.flops > kMaxFlops) return;
  auto request = std::make_unique<server::AttentionRequest>();
  request->tasks = decoded->tasks;
  Run(std::move(request));
  ++the_progress.computed;
  if (wire.returns().weights()) RunWeights(*decoded);
}

}  // namespace

std::vector<std::string> SeedMessages() {
  using testing::MakeAttendRequest;
  std::vector<v1::AttendRequest> seeds = {
      MakeAttendRequest({.head_dim_qk = 8, .head_dim_v = 6}),
      MakeAttendRequest({.head_dim_qk = 5,
                         .head_dim_v = 3,
                         .dtype = v1::DTYPE_BFLOAT16,
                         .q_lens = {2, 0, 3},
                         .kv_lens = {4, 1, 17}}),
      MakeAttendRequest({.num_q_heads = 2,
                         .num_kv_heads = 1,
                         .head_dim_qk = 4,
                         .head_dim_v = 9,
                         .dtype = v1::DTYPE_FLOAT16,
                         .q_lens = {3, 2},
                         .kv_lens = {5, 1},
                         .is_dense = true}),
  };
  v1::AttendRequest everything =
      MakeAttendRequest({.head_dim_qk = 8, .head_dim_v = 8, .q_lens = {2, 3}, .kv_lens = {6, 4}});
  v1::AttentionConfig* config = everything.mutable_config();
  config->set_is_causal(true);
  config->set_window_left(2);
  config->set_window_right(1);
  config->set_sink_tokens(1);
  config->set_soft_cap(3);
  *config->mutable_alibi_slopes() = testing::RandomTensor(v1::DTYPE_FLOAT32, {4}, 1);
  *config->mutable_sink_logits() = testing::RandomTensor(v1::DTYPE_FLOAT32, {4}, 2);
  *everything.mutable_bias() = testing::RandomTensor(v1::DTYPE_FLOAT16, {2, 4, 3, 6}, 3);
  *everything.mutable_mask() = testing::RandomMask({1, 3, 6}, 4);
  everything.add_first_query_positions(-1);
  everything.add_first_query_positions(3);
  everything.mutable_returns()->set_column_sums(true);
  everything.mutable_returns()->set_weights(true);
  seeds.push_back(everything);
  std::vector<std::string> messages;
  for (const v1::AttendRequest& seed : seeds) messages.push_back(seed.SerializeAsString());
  return messages;
}

std::unique_ptr<google::protobuf::Message> NewMessage() {
  return std::make_unique<v1::AttendRequest>();
}

const Progress& progress() { return the_progress; }

}  // namespace attention::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  attention::codec::ReceivedMessage received;
  attention::v1::AttendRequest request;
  if (!received.Parse(attention::fuzz::Receive(data, size), &request).ok()) return 0;
  ++attention::fuzz::the_progress.parsed;
  attention::fuzz::Execute(received, request);
  return 0;
}
