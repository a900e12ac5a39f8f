// Measures the host that plays the device: by the host's clock, and without ceilings.
#pragma once

#include <memory>

#include "kernels/cuda/device_meter.h"

namespace attention::simt {

std::unique_ptr<cuda::DeviceMeter> MakeSimtMeter();

}  // namespace attention::simt
