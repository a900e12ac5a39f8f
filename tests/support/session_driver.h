// Sessions over the raw stub, for tests: make one, cut a prompt into steps, feed it.
#pragma once

#include <string>
#include <vector>

#include "attention/v1/session_service.pb.h"
#include "tests/support/service_fixture.h"

namespace attention::testing {

struct SessionSpec {
  int num_layers = 1;
  int num_kv_heads = 2;
  int head_dim_qk = 32;
  int head_dim_v = 32;
  v1::DType kv_dtype = v1::DTYPE_FLOAT32;
  absl::Duration ttl = absl::ZeroDuration();  // zero: the server's default
};

v1::CreateSessionRequest MakeCreateRequest(const SessionSpec& spec);

// The session; fails the test when the server refuses.
v1::Session MustCreate(ServerClient& server, const SessionSpec& spec = {},
                       const std::string& tenant = "");

// The session as the server has it now. Renews its lease.
v1::Session MustGet(ServerClient& server, const v1::SessionHandle& handle);

grpc::Status Delete(ServerClient& server, const v1::SessionHandle& handle,
                    const std::string& tenant = "");

// A causal prompt of one sequence whose heads and dims are those of the default SessionSpec.
v1::AttendRequest MakePrompt(std::int64_t length, v1::DType dtype = v1::DTYPE_FLOAT32,
                             std::uint32_t seed = 1);

// Appends rows [begin, end) of the prompt to a layer and attends with them; asks for what the
// prompt asks for.
v1::SessionStep MakeStep(const v1::AttendRequest& prompt, const v1::SessionHandle& handle,
                         std::int64_t begin, std::int64_t end, int layer = 0);
// Without q: appends only. Without k and v: attends only, over the first `end` tokens.
v1::SessionStep MakeAppend(const v1::AttendRequest& prompt, const v1::SessionHandle& handle,
                           std::int64_t begin, std::int64_t end, int layer = 0);
v1::SessionStep MakeAttend(const v1::AttendRequest& prompt, const v1::SessionHandle& handle,
                           std::int64_t begin, std::int64_t end, int layer = 0);

// One step in a call of its own. The call must succeed; the step may fail.
v1::SessionStepResult RunStep(ServerClient& server, const v1::SessionStep& step,
                              const std::string& tenant = "");
// The same, but the step must succeed too.
v1::SessionStepResult MustStep(ServerClient& server, const v1::SessionStep& step);

// A new session with the prompt's first `length` tokens in each layer.
v1::SessionHandle MustFill(ServerClient& server, const v1::AttendRequest& prompt,
                           std::int64_t length, const SessionSpec& spec = {});

// A step's answer in the form of the stateless call's.
v1::AttendResponse AsResponse(const v1::SessionStepResult& result);

// Feeds the whole prompt `chunk` tokens at a time; the answers of all rows together.
v1::AttendResponse Feed(ServerClient& server, const v1::AttendRequest& prompt,
                        const v1::SessionHandle& handle, std::int64_t chunk, int layer = 0);

// Output and lse have the same bits.
bool SameAnswer(const v1::AttendResponse& a, const v1::AttendResponse& b);

}  // namespace attention::testing
