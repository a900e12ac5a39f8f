#include "tests/simt/hopper_primitives.h"

namespace attention::cuda::simt_primitives {

void MultiplyWarpgroup(const simt::WgmmaCall& call) {
  simt::Thread& thread = simt::Current();
  thread.MeetWarpgroup({"wgmma", const_cast<simt::WgmmaCall*>(&call)},
                       [&thread](void* const(&all)[simt::kWarpgroupThreads]) {
                         const simt::WgmmaCall* calls[simt::kWarpgroupThreads];
                         for (int i = 0; i < simt::kWarpgroupThreads; ++i) {
                           calls[i] = static_cast<const simt::WgmmaCall*>(all[i]);
                         }
                         thread.wgmma().Issue(calls);
                       });
}

}  // namespace attention::cuda::simt_primitives
