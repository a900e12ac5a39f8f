#include "server/make_devices.h"

#include <algorithm>
#include <cstddef>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/base/status_macros.h"

namespace attention::server {
namespace {

// A device gets its part of what is configured, or of its own memory all but what runs need for
// their tensors.
std::size_t KvCapacity(const ServerConfig& config, std::size_t num_devices,
                       const MemoryAllocator& pages) {
  if (config.kv_capacity_bytes > 0) {
    return static_cast<std::size_t>(config.kv_capacity_bytes) / num_devices;
  }
  return pages.free_bytes() / 10 * 8;
}

// The GPUs that can be used. When none can, the first one's error.
absl::StatusOr<std::vector<int>> UsableGpus(const GpuList& list) {
  ATTENTION_ASSIGN_OR_RETURN(const std::vector<VisibleGpu> gpus, list());
  std::vector<int> usable;
  for (std::size_t i = 0; i < gpus.size(); ++i) {
    if (gpus[i].status.ok()) usable.push_back(static_cast<int>(i));
  }
  if (usable.empty()) return gpus[0].status;
  return usable;
}

absl::StatusOr<std::vector<BackendOptions>> DivideGpus(const ServerConfig& config,
                                                       const GpuList& list) {
  std::vector<int> gpus = config.cuda_devices;
  if (gpus.empty()) {
    ATTENTION_ASSIGN_OR_RETURN(gpus, UsableGpus(list));
  }
  const auto workers = config.workers > 0 ? static_cast<std::size_t>(config.workers) : gpus.size();
  if (workers > gpus.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("workers is ", workers, ", expected at most the ", gpus.size(), " GPUs"));
  }
  std::vector<BackendOptions> devices(workers);
  for (std::size_t i = 0; i < workers; ++i) devices[i].cuda_device = gpus[i];
  return devices;
}

}  // namespace

absl::StatusOr<std::vector<BackendOptions>> DivideMachine(const ServerConfig& config,
                                                          const std::vector<CpuList>& nodes,
                                                          const GpuList& gpus,
                                                          const MachineLimits& limits) {
  if (config.backend == "cuda") return DivideGpus(config, gpus);
  int num_cpus = 0;
  for (const CpuList& node : nodes) num_cpus += static_cast<int>(node.size());
  const int usable_cpus = UsableCpus(limits, num_cpus);
  const int most_workers = config.threads > 0 ? num_cpus : usable_cpus;
  const int workers =
      config.workers > 0 ? config.workers : std::min(static_cast<int>(nodes.size()), most_workers);
  if (workers > num_cpus && config.threads == 0) {
    return absl::InvalidArgumentError(absl::StrCat("workers is ", workers,
                                                   ", expected at most the ", num_cpus,
                                                   " CPUs of this machine, or threads for each"));
  }
  const int threads = config.threads > 0 ? config.threads : std::max(usable_cpus, workers);
  if (threads < workers) {
    return absl::InvalidArgumentError(absl::StrCat("threads is ", threads,
                                                   ", expected one for each of the ", workers,
                                                   " workers at the least"));
  }
  if (config.pin_threads == "yes" && threads > num_cpus) {
    return absl::InvalidArgumentError(
        absl::StrCat("threads is ", threads, ", expected at most the ", num_cpus,
                     " CPUs of this machine, because pin_threads is yes"));
  }
  const bool is_pinned =
      config.pin_threads == "yes" || (config.pin_threads == "auto" && workers > 1 &&
                                      threads <= num_cpus && usable_cpus == num_cpus);
  std::vector<BackendOptions> devices(static_cast<std::size_t>(workers));
  for (int worker = 0; worker < workers; ++worker) {
    devices[worker].num_threads = threads / workers + (worker < threads % workers ? 1 : 0);
  }
  if (!is_pinned) return devices;
  std::vector<CpuList> parts = DivideCpus(nodes, workers);
  for (int worker = 0; worker < workers; ++worker) {
    BackendOptions& device = devices[worker];
    CpuList& cpus = parts[worker];
    // A part of the threads may be more than a small node's CPUs.
    device.num_threads = std::min(device.num_threads, static_cast<int>(cpus.size()));
    cpus.resize(static_cast<std::size_t>(device.num_threads));
    device.cpus = std::move(cpus);
  }
  return devices;
}

absl::StatusOr<Devices> MakeDevices(const ServerConfig& config, const MachineLimits& limits,
                                    const BackendFactory& factory, const DeviceLog& log,
                                    const Clock& clock, ServerMetrics& metrics) {
  ATTENTION_ASSIGN_OR_RETURN(const std::vector<BackendOptions> parts,
                             DivideMachine(config, NumaNodes(), VisibleGpus, limits));
  Devices devices;
  for (const BackendOptions& part : parts) {
    ATTENTION_ASSIGN_OR_RETURN(std::unique_ptr<RecoveringBackend> backend,
                               RecoveringBackend::Make([name = config.backend, factory, part] {
                                 return factory(name, part);
                               }));
    Device::Options options;
    options.kv_capacity_bytes = KvCapacity(config, parts.size(), backend->memory());
    options.kv_spill_bytes = static_cast<std::size_t>(config.kv_spill_bytes) / parts.size();
    options.kv_spill_idle = config.kv_spill_idle;
    if (!part.cpus.empty()) options.cpu = part.cpus[0];
    options.on_failure = [log, index = devices.size(), info = backend->info()](
                             const absl::Status& failure, const absl::Status& recovery) {
      log(index, info, failure, recovery);
    };
    devices.push_back(
        std::make_unique<Device>(std::move(backend), std::move(options), clock, metrics));
  }
  return devices;
}

}  // namespace attention::server
