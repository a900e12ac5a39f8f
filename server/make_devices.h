// The worker pool of a configuration: which devices there are, and what each of them gets.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/base/cpu_topology.h"
#include "kernels/registry.h"
#include "server/base/clock.h"
#include "server/base/machine_limits.h"
#include "server/base/metrics.h"
#include "server/config/server_config.h"
#include "server/engine/device.h"

namespace attention::server {

// Makes a backend as MakeBackend does; tests give others.
using BackendFactory = std::function<absl::StatusOr<std::unique_ptr<AttentionBackend>>(
    std::string_view name, const BackendOptions& options)>;

// Told of a device's failures, as Device::Options::on_failure.
using DeviceLog = std::function<void(std::size_t worker, const BackendInfo& info,
                                     const absl::Status& failure, const absl::Status& recovery)>;

// The options of each worker's backend: a worker for each NUMA node, or as many as the
// configuration says, with the node's CPUs and its part of the threads; or a GPU each: those that
// are chosen, or else all that can be used. INVALID_ARGUMENT names the key that does not fit the
// machine, UNAVAILABLE says why there is no GPU. `gpus` is asked only for what is not chosen. Where
// a quota allows less than the CPUs there are, there are as many threads as it allows, which the
// system places: others may use the same CPUs.
using GpuList = std::function<absl::StatusOr<std::vector<VisibleGpu>>()>;
absl::StatusOr<std::vector<BackendOptions>> DivideMachine(const ServerConfig& config,
                                                          const std::vector<CpuList>& nodes,
                                                          const GpuList& gpus = VisibleGpus,
                                                          const MachineLimits& limits = {});

using Devices = std::vector<std::unique_ptr<Device>>;

// Makes the devices, at least one, each with its part of the bytes that are configured for KV
// pages, or with most of its own memory. `clock` and `metrics` must outlive them.
absl::StatusOr<Devices> MakeDevices(const ServerConfig& config, const MachineLimits& limits,
                                    const BackendFactory& factory, const DeviceLog& log,
                                    const Clock& clock, ServerMetrics& metrics);

}  // namespace attention::server
