// Projections in float64 by the obvious loops: what other backends' are checked against.
#pragma once

#include <memory>

#include "kernels/api/projection.h"

namespace attention::reference {

// Sums in float64, bias included; y is rounded from there, twice if it is of 16 bits.
std::unique_ptr<ProjectionBackend> MakeReferenceProjections();

}  // namespace attention::reference
