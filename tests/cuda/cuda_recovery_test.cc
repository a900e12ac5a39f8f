// A fault of a kernel on a real GPU: the driver gives the device back to the process, or this is
// said. Each in a process of its own, which the fault may spoil.
#include <gmock/gmock.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>

#include "kernels/cuda/plugin/plugin_loader.h"
#include "tests/support/attention_problem.h"
#include "tests/support/backend_checks.h"
#include "tests/support/cuda_backends.h"
#include "tests/support/tolerance.h"

namespace attention::testing {
namespace {

// Attends over a page at an address that was never allocated.
absl::Status Fault(AttentionBackend& backend) {
  const AttentionProblem problem({.q_len = 1, .kv_len = 40});
  PagedKv paged(backend, problem, {.page_size = 64});
  for (void*& page : paged.table()) page = reinterpret_cast<void*>(std::uintptr_t{256});
  TaskOutput output(problem.task().params, 1, 40);
  AttentionTask task = paged.Task(problem);
  output.BindTo(&task);
  auto plan = backend.Plan({&task, 1});
  return plan.ok() ? backend.Run(**plan) : plan.status();
}

[[noreturn]] void End(bool is_good, const char* what) {
  std::fprintf(stderr, "%s\n", what);
  std::_Exit(is_good ? 0 : 1);
}

// Ends the process with 0 if a backend made after the fault computes right, or if it is refused by
// name. Anything else would be a server that goes on with a device that is not well.
[[noreturn]] void FaultAndComeBack() {
  const AttentionProblem problem({.q_len = 1, .kv_len = 40});
  std::unique_ptr<AttentionBackend> backend = MakeCuda();
  const absl::Status fault = Fault(*backend);
  if (fault.code() != absl::StatusCode::kInternal) End(false, fault.ToString().c_str());
  backend->Abandon();
  auto next = cuda::LoadCudaBackend({.has_managed_memory = true});
  if (!next.ok()) {
    const std::string message(next.status().message());
    const bool is_named = next.status().code() == absl::StatusCode::kUnavailable;
    End(is_named, ("the driver does not give the device back: " + message).c_str());
  }
  backend.reset();  // after the next was made, as in the server: nothing of it may be freed
  const std::string mismatch =
      FindMismatch(MakeExpectation(problem), RunTask(**next, problem.task()));
  End(mismatch.empty(),
      mismatch.empty() ? "the device came back in the same process" : mismatch.c_str());
}

TEST(CudaRecoveryTest, AfterAFaultTheDeviceComesBackOrItsLossIsNamed) {
  ::testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_EXIT(FaultAndComeBack(), ::testing::ExitedWithCode(0), "the device");
}

}  // namespace
}  // namespace attention::testing
