// Checks for programmer errors. They abort with the failed expression and its place; nothing that a
// client sends may ever reach one (server/wire and server/engine refuse it with a status before).
#pragma once

#include <cstdio>
#include <cstdlib>

namespace attention {

[[noreturn]] inline void CheckFailed(const char* expression, const char* file, int line) {
  std::fprintf(stderr, "%s:%d: check failed: %s\n", file, line, expression);
  std::abort();
}

}  // namespace attention

#define ATTENTION_CHECK(expression) \
  ((expression) ? (void)0 : ::attention::CheckFailed(#expression, __FILE__, __LINE__))

#ifdef NDEBUG
#define ATTENTION_DCHECK(expression) ((void)0)
#else
#define ATTENTION_DCHECK(expression) ATTENTION_CHECK(expression)
#endif
