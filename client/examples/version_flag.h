// `PROGRAM --version` of the examples.
#pragma once

#include <cstdio>
#include <cstring>

#include "attention/client/version.h"

namespace attention::client {

// True if the version was asked for, and printed.
inline bool PrintsVersion(int argc, char** argv, const char* program) {
  if (argc != 2 || std::strcmp(argv[1], "--version") != 0) return false;
  std::printf("%s %s\n", program, Version().data());
  return true;
}

}  // namespace attention::client
