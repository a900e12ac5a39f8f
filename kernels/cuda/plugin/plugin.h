// The exports of libattention_cuda.so. The server loads it at run time, so that one program runs on
// machines with and without CUDA; the library itself links the static CUDA runtime and no driver.
//
// A backend crosses the boundary as a C++ object, so both sides must come from one build:
// the first two fields are compared before anything else of the request is read.
#pragma once

#include <cstddef>
#include <memory>

#include "absl/base/options.h"
#include "kernels/api/attention_backend.h"
#include "kernels/cuda/device/device.h"

#define ATTENTION_STRING_OF(name) #name
#define ATTENTION_STRING(name) ATTENTION_STRING_OF(name)

namespace attention::cuda {

// Raise the number with every change of this file, of the structs of kernels/api or of
// AttentionBackend.
inline constexpr char kPluginBuild[] =
    "attention-cuda 6, compiler " __VERSION__
    ", absl " ATTENTION_STRING(ABSL_OPTION_INLINE_NAMESPACE_NAME);

inline constexpr char kPluginLibrary[] = "libattention_cuda.so";

struct PluginRequest {
  const char* build = nullptr;    // kPluginBuild of the caller
  std::size_t request_bytes = 0;  // sizeof(PluginRequest) of the caller
  int device = 0;                 // ordinal
  // KV pages in managed memory, which the host can read too: for tests.
  bool has_managed_memory = false;
  double launch_flops = 0;     // of CudaBackendOptions; 0: the default
  std::size_t part_bytes = 0;  // the same

  AttentionBackend* backend = nullptr;        // result of make, owned by the caller
  std::shared_ptr<Device>* opened = nullptr;  // where open leaves its result
  int num_devices = 0;                        // result of describe: how many the process can see
  char* device_name = nullptr;                // result of describe; of name_bytes, null-terminated
  std::size_t name_bytes = 0;
  char* message = nullptr;  // why it failed; of message_bytes, null-terminated
  std::size_t message_bytes = 0;
};

// All return an absl::StatusCode, or kPluginOtherBuild and have touched nothing. Describe makes no
// context on the device. Open gives the device without a backend, to benchmarks.
using PluginFunction = int(PluginRequest*);
inline constexpr int kPluginOtherBuild = -1;
inline constexpr char kPluginMake[] = "attention_cuda_make_backend";
inline constexpr char kPluginOpen[] = "attention_cuda_open_device";
inline constexpr char kPluginDescribe[] = "attention_cuda_describe_device";

}  // namespace attention::cuda
