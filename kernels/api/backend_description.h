// A backend as others see it who do not compute: its names, what it supports, the layout of its
// pages. Thread-safety: all methods.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "kernels/api/attention_params.h"
#include "kernels/api/paged_kv_view.h"

namespace attention {

struct BackendInfo {
  std::string name;    // "cpu", "reference", "cuda"
  std::string device;  // model name of the processor
  std::string isa;     // instruction set the kernels were dispatched to
  int num_threads = 0;
  std::string no_projections = {};  // why projections() is null, where that has a reason
};

class BackendDescription {
 public:
  virtual ~BackendDescription() = default;

  virtual const BackendInfo& info() const = 0;

  // OK, or UNIMPLEMENTED with the reason: the limits of the kernels, for tasks that make sense
  // (validate.h). Here those of the contract itself.
  virtual absl::Status Supports(const AttentionParams& params, std::int64_t kv_len) const;

  // The bytes of a page of `page_size` tokens (a multiple of kPageGranularity).
  virtual KvPageLayout PageLayout(const KvGeometry& geometry, std::int64_t page_size) const = 0;

  // The name of the kernel that would compute the task; its pointers may be null.
  virtual std::string KernelName(const AttentionTask& task) const = 0;
};

}  // namespace attention
