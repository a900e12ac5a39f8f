#include "kernels/cuda/device/device_context.h"

#include <string>

#include "absl/strings/str_cat.h"

namespace attention::cuda {

absl::StatusOr<std::shared_ptr<DeviceContext>> ContextTable::Enter(int ordinal) {
  const std::lock_guard lock(mutex_);
  std::shared_ptr<DeviceContext>& context = contexts_[ordinal];
  if (context != nullptr && context->is_lost()) {
    const absl::Status status = reset_(ordinal);
    if (!status.ok()) {
      return absl::UnavailableError(
          absl::StrCat("the device's context was lost, and the driver does not replace it: ",
                       std::string(status.message()), "; start the server again"));
    }
    context.reset();
  }
  if (context == nullptr) context = std::make_shared<DeviceContext>();
  return context;
}

}  // namespace attention::cuda
