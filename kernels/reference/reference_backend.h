// The float64 reference as a backend, so that a server can run on it (slowly) when results are in
// doubt.
#pragma once

#include <memory>

#include "kernels/api/attention_backend.h"

namespace attention::reference {

std::unique_ptr<AttentionBackend> MakeReferenceBackend();

}  // namespace attention::reference
