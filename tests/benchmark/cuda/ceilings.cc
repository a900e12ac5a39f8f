#include "tests/benchmark/cuda/ceilings.h"

#include "tests/benchmark/median.h"

namespace attention::bench {

Roofline RooflineOf(const Work& work, const Ceilings& ceilings) {
  if (ceilings.matrix_flops <= 0 || ceilings.copy_bytes <= 0) return {};
  const double matrix = work.flops / ceilings.matrix_flops;
  const double memory = work.bytes / ceilings.copy_bytes;
  return matrix > memory ? Roofline{matrix, true} : Roofline{memory, false};
}

absl::Status CeilingSamples::Take(cuda::DeviceMeter& meter, MatrixLibrary* library) {
  Ceilings sample;
  const auto take = [](absl::StatusOr<double> measured, double* to) {
    if (measured.ok()) *to = *measured;
    return measured.status();
  };
  absl::Status status = take(meter.MatrixFlops(), &sample.loop_flops);
  sample.matrix_flops = sample.loop_flops;
  if (status.ok() && library != nullptr) {
    status = take(library->MeasureFlops(meter), &sample.matrix_flops);
  }
  // Right after matrix work, as the kernels find it.
  if (status.ok()) status = take(meter.ClockHertz(), &sample.clock_hertz);
  if (status.ok()) status = take(meter.CopyBytes(), &sample.copy_bytes);
  if (status.ok()) status = take(meter.ReadBytes(), &sample.read_bytes);
  if (status.ok()) samples_.push_back(sample);
  return status;
}

Ceilings CeilingSamples::Medians() const {
  const auto median = [this](double Ceilings::*field) {
    std::vector<double> values;
    for (const Ceilings& sample : samples_) values.push_back(sample.*field);
    return Median(std::move(values));
  };
  return {median(&Ceilings::matrix_flops), median(&Ceilings::loop_flops),
          median(&Ceilings::copy_bytes), median(&Ceilings::read_bytes),
          median(&Ceilings::clock_hertz)};
}

}  // namespace attention::bench
