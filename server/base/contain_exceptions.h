// Failures stop here: work that runs out of memory, or meets a bug, fails alone.
#pragma once

#include <exception>
#include <new>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace attention::server {

// Returns the result of `work`, a status or a value with one, or, when it throws,
// RESOURCE_EXHAUSTED or INTERNAL. Memory may be out here, too: a status without words needs none.
template <typename Work>
auto ContainExceptions(Work work) -> decltype(work()) {
  absl::StatusCode code = absl::StatusCode::kInternal;
  try {
    try {
      return work();
    } catch (const std::bad_alloc&) {
      code = absl::StatusCode::kResourceExhausted;
      return absl::Status(code, "out of memory");
    } catch (const std::exception& error) {
      return absl::Status(code, absl::StrCat("unexpected failure: ", error.what()));
    } catch (...) {
      return absl::Status(code, "unexpected failure");
    }
  } catch (const std::bad_alloc&) {
    return absl::Status(code, "");
  }
}

// The same of work that has no result. False when it threw.
template <typename Work>
bool TryRun(Work work) {
  return ContainExceptions([&] {
           work();
           return absl::OkStatus();
         })
      .ok();
}

}  // namespace attention::server
