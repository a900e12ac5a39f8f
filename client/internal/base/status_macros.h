// Passing errors on.
#pragma once

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

// Returns from the enclosing function if `expression` is an error.
#define ATTN_RETURN_IF_ERROR(expression)                                                \
  do {                                                                                  \
    if (absl::Status attn_status = (expression); !attn_status.ok()) return attn_status; \
  } while (false)

// Assigns the value of `expression` to `target`, or returns its error.
#define ATTN_ASSIGN_OR_RETURN(target, expression) \
  ATTN_ASSIGN_OR_RETURN_IMPL(ATTN_CONCAT(attn_result_, __LINE__), target, expression)
#define ATTN_ASSIGN_OR_RETURN_IMPL(result, target, expression) \
  auto result = (expression);                                  \
  if (!result.ok()) return std::move(result).status();         \
  target = *std::move(result)
#define ATTN_CONCAT(a, b) ATTN_CONCAT_IMPL(a, b)
#define ATTN_CONCAT_IMPL(a, b) a##b
