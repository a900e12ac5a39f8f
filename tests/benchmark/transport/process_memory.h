// Settings of the C allocator that the benchmark's processes give themselves, as the server does.
#pragma once

#include "tests/benchmark/transport/settings.h"

namespace attention::bench {

// Applies what can be set after the start. Call first in main, before threads exist. False when the
// allocator refused.
bool SetUpMemory(Memory memory);

// The environment that Memory::kKeepHuge needs before the start: "NAME=value".
inline constexpr char kHugePagesVariable[] = "GLIBC_TUNABLES";
inline constexpr char kHugePagesValue[] = "glibc.malloc.hugetlb=1";

}  // namespace attention::bench
