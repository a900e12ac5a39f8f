// Early return of a failed absl::Status.
#pragma once

#define ATTENTION_RETURN_IF_ERROR(expression)                 \
  do {                                                        \
    if (absl::Status status_ = (expression); !status_.ok()) { \
      return status_;                                         \
    }                                                         \
  } while (false)

#define ATTENTION_CONCAT_INNER(a, b) a##b
#define ATTENTION_CONCAT(a, b) ATTENTION_CONCAT_INNER(a, b)

// ATTENTION_ASSIGN_OR_RETURN(auto value, FunctionThatReturnsStatusOr());
#define ATTENTION_ASSIGN_OR_RETURN(target, expression) \
  ATTENTION_ASSIGN_OR_RETURN_IMPL(ATTENTION_CONCAT(status_or_, __LINE__), target, expression)
#define ATTENTION_ASSIGN_OR_RETURN_IMPL(result, target, expression) \
  auto result = (expression);                                       \
  if (!result.ok()) return std::move(result).status();              \
  target = *std::move(result)
