// Passing errors on.
#pragma once

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

// Returns from the enclosing function if `expression` is an error.
#define ATTENTION_CLIENT_RETURN_IF_ERROR(expression)                                    \
  do {                                                                                  \
    if (absl::Status attn_status = (expression); !attn_status.ok()) return attn_status; \
  } while (false)

// Assigns the value of `expression` to `target`, or returns its error.
#define ATTENTION_CLIENT_ASSIGN_OR_RETURN(target, expression)                                     \
  ATTENTION_CLIENT_ASSIGN_OR_RETURN_IMPL(ATTENTION_CLIENT_CONCAT(attn_result_, __LINE__), target, \
                                         expression)
#define ATTENTION_CLIENT_ASSIGN_OR_RETURN_IMPL(result, target, expression) \
  auto result = (expression);                                              \
  if (!result.ok()) return std::move(result).status();                     \
  target = *std::move(result)
#define ATTENTION_CLIENT_CONCAT(a, b) ATTENTION_CLIENT_CONCAT_IMPL(a, b)
#define ATTENTION_CLIENT_CONCAT_IMPL(a, b) a##b
