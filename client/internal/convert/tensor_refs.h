// References that stand for the tensors of one request in its messages.
#pragma once

#include <cstddef>
#include <optional>

#include "absl/status/statusor.h"
#include "attention/client/tensor.h"
#include "attention/v1/tensor.pb.h"

namespace attention::client::internal {

class TensorRefs {
 public:
  virtual ~TensorRefs() = default;

  // The reference that stands for a tensor; nullopt when its bytes are to be sent.
  virtual std::optional<v1::SharedMemoryRef> RefTo(const TensorView& tensor) const = 0;
  // The reference for the output of the request, or of its step of this index; nullopt when the
  // server is to send the output back.
  virtual std::optional<v1::SharedMemoryRef> RefToOutput(std::size_t index) const = 0;

  // The result that the server says it has written; it keeps the memory. INTERNAL when that is not
  // where the server was asked to write it.
  virtual absl::StatusOr<Tensor> Read(const v1::SharedMemoryRef& ref, DType dtype,
                                      Shape shape) const = 0;
};

}  // namespace attention::client::internal
