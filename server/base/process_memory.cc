#include "server/base/process_memory.h"

#include <malloc.h>

namespace attention::server {

void KeepFreedMemory() {
#ifdef __GLIBC__
  constexpr int kMmapThreshold = 1 << 30;
  constexpr int kNeverTrim = 2147483647;
  constexpr int kTopPad = 64 << 20;  // grow in steps that are worth the call
  mallopt(M_MMAP_THRESHOLD, kMmapThreshold);
  mallopt(M_TRIM_THRESHOLD, kNeverTrim);
  mallopt(M_TOP_PAD, kTopPad);
#endif
}

}  // namespace attention::server
