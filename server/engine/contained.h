// Exceptions stop here: work that runs out of memory, or meets a bug, fails alone.
#pragma once

#include <exception>
#include <new>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace attention::server {

// What `compute` returns, or, when it throws, RESOURCE_EXHAUSTED or INTERNAL.
template <typename Compute>
auto ContainExceptions(Compute compute) -> decltype(compute()) {
  try {
    return compute();
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError("out of memory while computing");
  } catch (const std::exception& error) {
    return absl::InternalError(absl::StrCat("computing failed: ", error.what()));
  }
}

}  // namespace attention::server
