#include "client/internal/shared_memory/move_tensors.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>

#include "client/internal/shared_memory/shared_tensor_refs.h"

namespace attention::client::internal {
namespace {

// The least bytes of a request's tensors and outputs that are worth sharing. Below them a unix
// socket is as fast (measured with attention-bench-transport --study shared-memory;
// docs/performance/transport.md has the figures).
constexpr std::size_t kMinRequestBytes = std::size_t{64} << 10;

// Calls `visit` with each tensor that is there.
template <typename HasTensors, typename Visit>
void ForEachTensorOf(HasTensors& request, Visit visit) {
  for (auto* tensor : {&request.q, &request.k, &request.v, &request.bias, &request.mask,
                       &request.config.alibi_slopes, &request.config.sink_logits}) {
    if (tensor->is_present()) visit(*tensor);
  }
}

template <typename Request, typename Visit>
void ForEachTensor(Request& request, Visit visit) {
  if constexpr (requires { request.steps; }) {
    for (auto& step : request.steps) ForEachTensorOf(step, visit);
  } else {
    ForEachTensorOf(request, visit);
  }
}

// The bytes of an output, which has q's shape with head_dim_v in its last place; 0 when that is not
// known.
std::size_t OutputBytes(const TensorView& q, std::int64_t head_dim_v) {
  if (!q.is_present() || head_dim_v <= 0) return 0;
  Shape shape = q.shape;
  shape.back() = head_dim_v;
  const std::int64_t elements = NumElements(shape);
  std::size_t bytes = 0;
  const bool overflows = elements < 0 || __builtin_mul_overflow(static_cast<std::size_t>(elements),
                                                                ElementBytes(q.dtype), &bytes);
  return overflows || bytes < SharedTensorRefs::kMinTensorBytes ? 0 : bytes;
}

std::int64_t HeadDimOf(const TensorView& v) { return v.is_present() ? v.shape.back() : 0; }

std::vector<std::size_t> OutputBytes(const AttendRequest& request) {
  return {OutputBytes(request.q,
                      request.value_is_key_prefix ? request.head_dim_v : HeadDimOf(request.v))};
}

std::vector<std::size_t> OutputBytes(const StepRequest& request) {
  std::vector<std::size_t> bytes;
  bytes.reserve(request.steps.size());
  for (const SessionStep& step : request.steps) {
    bytes.push_back(OutputBytes(step.q, HeadDimOf(step.v)));
  }
  return bytes;
}

// The copies that moving a request takes.
struct Plan {
  std::vector<std::shared_ptr<SharedSlot>> in_place;  // by tensor; null: to be copied
  std::size_t copied_bytes = 0;
  std::size_t total_bytes = 0;
  bool has_shared = false;
};

template <typename Request>
std::optional<Plan> MakePlan(const SharedMemoryChannels& channels, std::size_t target,
                             const Request& request) {
  Plan plan;
  bool is_valid = true;
  const bool may_be_shared = channels.has_memory();
  ForEachTensor(request, [&](const TensorView& tensor) {
    const std::size_t bytes = tensor.num_bytes();
    is_valid = is_valid && tensor.num_elements() >= 0 && (bytes == 0 || tensor.data != nullptr) &&
               !__builtin_add_overflow(plan.total_bytes, bytes, &plan.total_bytes);
    if (!is_valid) return;
    const bool is_large = may_be_shared && bytes >= SharedTensorRefs::kMinTensorBytes;
    std::shared_ptr<SharedSlot> slot = is_large ? channels.Find(tensor.data, bytes) : nullptr;
    // The target's server cannot read memory that another server made: that is copied, too.
    if (slot != nullptr && slot->region()->target() != target) slot = nullptr;
    plan.has_shared = plan.has_shared || slot != nullptr;
    if (slot == nullptr) plan.copied_bytes += ExtentAllocator::RoundUp(bytes);
    plan.in_place.push_back(std::move(slot));
  });
  if (!is_valid) return std::nullopt;
  return plan;
}

template <typename Request>
std::shared_ptr<const Request> Move(SharedMemoryChannels& channels, std::size_t target,
                                    const Request& request, SharedInputs* inputs) {
  std::optional<Plan> plan = MakePlan(channels, target, request);
  if (!plan.has_value()) return nullptr;
  std::vector<std::size_t> output_bytes = OutputBytes(request);
  const std::size_t total = plan->total_bytes + SharedTensorRefs::SlotBytes(output_bytes);
  if (total < kMinRequestBytes && !plan->has_shared) return nullptr;
  std::shared_ptr<SharedSlot> copies;
  if (plan->copied_bytes > 0) {
    copies = channels.Allocate(target, plan->copied_bytes);
    if (copies == nullptr) return nullptr;
    inputs->slots.push_back(copies);
  }
  char* next = copies != nullptr ? copies->data() : nullptr;
  std::size_t index = 0;
  auto moved = std::make_shared<Request>(request);
  ForEachTensor(*moved, [&](TensorView& tensor) {
    std::shared_ptr<SharedSlot>& slot = plan->in_place[index++];
    if (slot != nullptr) {
      inputs->slots.push_back(std::move(slot));
      return;
    }
    const std::size_t bytes = tensor.num_bytes();
    if (bytes > 0) std::memcpy(next, tensor.data, bytes);
    tensor.data = next;
    next += ExtentAllocator::RoundUp(bytes);
  });
  // Several tensors may lie in one slot.
  std::sort(inputs->slots.begin(), inputs->slots.end());
  inputs->slots.erase(std::unique(inputs->slots.begin(), inputs->slots.end()), inputs->slots.end());
  inputs->output_bytes = std::move(output_bytes);
  return moved;
}

}  // namespace

std::shared_ptr<const AttendRequest> MoveToSharedMemory(SharedMemoryChannels& channels,
                                                        std::size_t target,
                                                        const AttendRequest& request,
                                                        SharedInputs* inputs) {
  return Move(channels, target, request, inputs);
}

std::shared_ptr<const StepRequest> MoveToSharedMemory(SharedMemoryChannels& channels,
                                                      std::size_t target,
                                                      const StepRequest& request,
                                                      SharedInputs* inputs) {
  return Move(channels, target, request, inputs);
}

}  // namespace attention::client::internal
