// References to the tensors of one request in shared memory, by the names that one target's server
// has for its regions.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "attention/client/tensor.h"
#include "attention/v1/tensor.pb.h"
#include "client/internal/convert/tensor_refs.h"
#include "client/internal/shared_memory/shared_region.h"

namespace attention::client::internal {

// A slot, and its region's id at the target.
struct NamedSlot {
  std::shared_ptr<SharedSlot> slot;
  std::string region_id;
};

// Thread-safety: immutable once made.
class SharedTensorRefs final : public TensorRefs {
 public:
  // A tensor of fewer bytes travels in the message: its reference would take as many.
  static constexpr std::size_t kMinTensorBytes = 256;

  // `output_bytes`: of each output of the request, 0 for one that is sent back; they lie one behind
  // the other in the slot `output`, each on a 64-byte boundary. `output` has no slot where all
  // outputs are sent back.
  SharedTensorRefs(std::vector<NamedSlot> inputs, NamedSlot output,
                   const std::vector<std::size_t>& output_bytes);

  // Bytes of the slot for these outputs.
  static std::size_t SlotBytes(const std::vector<std::size_t>& output_bytes);

  std::optional<v1::SharedMemoryRef> RefTo(const TensorView& tensor) const override;
  std::optional<v1::SharedMemoryRef> RefToOutput(std::size_t index) const override;
  absl::StatusOr<Tensor> Read(const v1::SharedMemoryRef& ref, DType dtype,
                              Shape shape) const override;

  const std::vector<NamedSlot>& inputs() const { return inputs_; }
  const NamedSlot& output() const { return output_; }

 private:
  struct Output {
    std::size_t offset;  // in the region
    std::size_t bytes;
  };

  std::vector<NamedSlot> inputs_;  // by address
  NamedSlot output_;
  std::vector<Output> outputs_;  // by offset and by index, as they are in both orders
};

}  // namespace attention::client::internal
