// Where the tensors of one request lie in shared memory, as one target's server calls the places.
#ifndef ATTENTION_CLIENT_INTERNAL_SHARED_MEMORY_SHARED_PLACES_H_
#define ATTENTION_CLIENT_INTERNAL_SHARED_MEMORY_SHARED_PLACES_H_

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "attention/client/tensor.h"
#include "attention/v1/tensor.pb.h"
#include "client/internal/shared_memory/shared_region.h"

namespace attention::client::internal {

// A slot, and its region's id at the target.
struct PlacedSlot {
  std::shared_ptr<SharedSlot> slot;
  std::string region_id;
};

// Thread-safety: immutable once made.
class SharedPlaces {
 public:
  // A tensor of fewer bytes travels in the message: its place would take as many.
  static constexpr size_t kMinTensorBytes = 256;

  // `output_bytes`: of each output of the request, 0 for one without a place; they lie one behind
  // the other in the slot `output`, each on a 64-byte boundary. `output` has no slot where all
  // outputs travel.
  SharedPlaces(std::vector<PlacedSlot> inputs, PlacedSlot output,
               const std::vector<size_t>& output_bytes);

  // Bytes of the slot for these outputs.
  static size_t SlotBytes(const std::vector<size_t>& output_bytes);

  // The place of a tensor; nullopt when it is to travel.
  std::optional<v1::SharedMemoryRef> Of(const TensorView& tensor) const;
  // The place for the output of the request, or of its step of this index.
  std::optional<v1::SharedMemoryRef> OfOutput(size_t index) const;

  // The result that the server says it has written, which keeps the slot. INTERNAL: not to where it
  // was asked to.
  absl::StatusOr<Tensor> Read(const v1::SharedMemoryRef& place, DType dtype, Shape shape) const;

  const std::vector<PlacedSlot>& inputs() const { return inputs_; }
  const PlacedSlot& output() const { return output_; }

 private:
  struct Output {
    size_t offset;  // in the region
    size_t bytes;
  };

  std::vector<PlacedSlot> inputs_;  // by address
  PlacedSlot output_;
  std::vector<Output> outputs_;  // by offset and by index, as they are in both orders
};

}  // namespace attention::client::internal

#endif  // ATTENTION_CLIENT_INTERNAL_SHARED_MEMORY_SHARED_PLACES_H_
