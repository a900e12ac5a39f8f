#include "kernels/api/backend_description.h"

#include "kernels/api/validate.h"

namespace attention {

absl::Status BackendDescription::Supports(const AttentionParams& params,
                                          std::int64_t /*kv_len*/) const {
  const absl::Status status = ValidateHeads(params);
  return status.ok() ? status : absl::UnimplementedError(status.message());
}

}  // namespace attention
