// Measures the host that plays the device: by the host's clock, and without ceilings.
#pragma once

#include <functional>
#include <memory>

#include "kernels/cuda/device/device_meter.h"

namespace attention::simt {

// `drain` does what is queued on the device; marks are set behind it.
std::unique_ptr<cuda::DeviceMeter> MakeSimtMeter(std::function<void()> drain);

}  // namespace attention::simt
